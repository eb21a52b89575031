"""The training loop, which knows torch and, if initialised, torch.distributed; it does not know Ray."""

from trainables.training.loop import train

__all__ = ["train"]
