"""The candidates of a race: batch sizes with gradient accumulation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Candidate:
    """A global batch size and the number of batches whose gradients are accumulated for one update.

    ``str(candidate)`` and ``candidate.key`` are its name in curves, decisions, files and tables: ``128``, or ``128x4``
    for four batches per update. ``Candidate.parse`` reads it back.

    Args:
        batch_size: Images of the global batch, over **all** workers; at least 2, because a contrastive loss needs
            negatives.
        accumulation: Batches whose gradients are averaged for one update, at least 1. More batches reduce the gradient
            noise but add no negatives.

    Raises:
        ValueError: A number is not an integer, or too small.
    """

    batch_size: int
    accumulation: int = 1

    def __post_init__(self) -> None:
        for name, value in (("batch size", self.batch_size), ("accumulation", self.accumulation)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} {value!r} is not a whole number")
        if self.batch_size < 2:
            raise ValueError(f"batch size {self.batch_size} is below 2: a contrastive loss needs negatives")
        if self.accumulation < 1:
            raise ValueError(f"accumulation {self.accumulation} is below 1: an update needs at least one batch")

    @classmethod
    def parse(cls, key: str) -> Candidate:
        """Returns the candidate with this key.

        Raises:
            ValueError: The key is malformed.
        """
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(key), re.ASCII)
        if match is None:
            raise ValueError(f"{key!r} is not a candidate: write a batch size (128) or 128x4 for accumulation over 4")
        return cls(int(match[1]), int(match[2] or 1))

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Candidate:
        """Returns the candidate given by the entries ``batch_size`` and ``accumulation`` (default 1) of a report."""
        return cls(entries["batch_size"], entries.get("accumulation", 1))

    @property
    def images_per_update(self) -> int:
        """Images that one update is computed from, over all workers and accumulated batches."""
        return self.batch_size * self.accumulation

    @property
    def key(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return str(self.batch_size) if self.accumulation == 1 else f"{self.batch_size}x{self.accumulation}"
