"""What a race is run between."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Candidate:
    """One way to form an update.

    Args:
        batch_size: Images over **all** workers together (the global batch) that are each other's negatives, at least
            2 because a contrastive loss needs another image to tell apart.
        accumulation: Batches whose gradients are averaged for one update, at least 1. It makes the gradient less noisy
            and adds no negatives.

    Raises:
        ValueError: A number is not whole, or too small.
    """

    batch_size: int
    accumulation: int = 1

    def __post_init__(self) -> None:
        for name, value in (("batch size", self.batch_size), ("accumulation", self.accumulation)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} {value!r} is not a whole number")
        if self.batch_size < 2:
            raise ValueError(f"batch size {self.batch_size} is below 2: a contrastive loss needs another image")
        if self.accumulation < 1:
            raise ValueError(f"accumulation {self.accumulation} is below 1: an update needs a batch")

    @classmethod
    def of_key(cls, key: str) -> Candidate:
        """The candidate that has this key."""
        batch_size, _, accumulation = key.partition("x")
        return cls(int(batch_size), int(accumulation or 1))

    @property
    def images_per_update(self) -> int:
        """Images over all workers and all batches that one update learns from."""
        return self.batch_size * self.accumulation

    @property
    def key(self) -> str:
        """The candidate's name in curves, decisions and tables: 128, or 128x4 where four batches make an update."""
        return str(self.batch_size) if self.accumulation == 1 else f"{self.batch_size}x{self.accumulation}"
