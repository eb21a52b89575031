"""Pretrains SimCLR encoders on Ray with automatic choice of the batch size."""

from typing import TYPE_CHECKING, Any

from adaptive_ray.ray_cluster.own_packages import ROOT, imports_from

if TYPE_CHECKING:
    from adaptive_ray.encoders import load_encoder

__all__ = ["__version__", "load_encoder"]

__version__ = "0.1.0"

imports_from(ROOT)()


def __getattr__(name: str) -> Any:
    if name == "load_encoder":  # lazy: imports torch
        from adaptive_ray.encoders import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
