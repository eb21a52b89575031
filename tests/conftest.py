"""Shared by all tests: a real local Ray, quiet and without reports home."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """Real CIFAR-10 in torchvision's layout, where a team has it beside the checkout."""
    root = REPOSITORY.parent / "shared" / "data"
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 at {root}")
    return root


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray cluster on this machine for the tests of one module."""
    import ray

    from adaptive_ray.ray_cluster import announced

    ray.init(address="local", num_cpus=4, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    with announced():
        yield
    ray.shutdown()
