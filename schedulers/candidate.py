"""What a race is run between."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Candidate:
    """One way to form a batch.

    Args:
        batch_size: Images per optimizer step over **all** workers together (the global batch), at least 2
            because a contrastive loss needs another image to tell apart.

    Raises:
        ValueError: The batch size is not a whole number of at least 2.
    """

    batch_size: int

    def __post_init__(self) -> None:
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise ValueError(f"batch size {self.batch_size!r} is not a whole number")
        if self.batch_size < 2:
            raise ValueError(f"batch size {self.batch_size} is below 2: a contrastive loss needs another image")

    @property
    def key(self) -> str:
        """The candidate's name in curves, decisions and tables."""
        return str(self.batch_size)
