"""Trains one candidate with torch and, if initialised, torch.distributed. Does not import Ray."""

from trainables.training.loop import train

__all__ = ["train"]
