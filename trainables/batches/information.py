"""Method 4: when accumulated batches hold enough of the data's distribution to make an update."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainables.settings.accumulation import ROUNDING


class InformationAccumulator:
    """Adds up scores until they are enough.

    Args:
        alpha: What they must add up to, above 0.
        tolerance: Share of ``alpha`` that may be lacking, from 0 to below 1.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(self, alpha: float, tolerance: float = 0.05) -> None:
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha {alpha} must be above 0 and finite")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance {tolerance} must be at least 0 and below 1")
        self._enough = alpha * (1 - tolerance) - ROUNDING * alpha
        self._scores: list[float] = []
        self._complete = False

    def add(self, score: float) -> bool:
        """Takes the next micro-batch's score. True: these are enough, update now; the next one starts from zero.

        Raises:
            ValueError: The score is negative or no number.
        """
        if not (score >= 0 and math.isfinite(score)):
            raise ValueError(f"score {score} must be a number that is not negative")
        if self._complete:
            self._scores = []
        self._scores.append(score)
        self._complete = math.fsum(self._scores) >= self._enough
        return self._complete

    @property
    def weights(self) -> NDArray[np.float64]:
        """Of the micro-batches since the last update (right after an update: of those it is made of), sum 1.

        They are proportional to the scores; equal where all scores are 0.
        """
        scores = np.array(self._scores)
        total = scores.sum()
        return scores / total if total > 0 else np.full(len(scores), 1 / max(len(scores), 1))
