"""The training loop. It knows torch and, if initialised, torch.distributed; it does not know Ray.

``train`` is imported when it is first used: processes of Ray that do not train import errors from here without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.training.loop import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":
        from trainables.training.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
