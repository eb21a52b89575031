"""Adaptive accumulation (method 4): accumulates batches until they represent the data well enough for an update."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainables.settings.accumulation import ROUNDING


class InformationAccumulator:
    """Adds up the scores of micro-batches until they reach ``alpha``.

    Args:
        alpha: Sum of scores that an update needs, above 0.
        tolerance: Fraction of ``alpha`` by which the sum may fall short, at least 0 and below 1.

    Raises:
        ValueError: An argument is out of range.
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
        """Adds the score of the next micro-batch. Returns whether an update is due; the next call starts from zero.

        Raises:
            ValueError: The score is negative or not finite.
        """
        if not (score >= 0 and math.isfinite(score)):
            raise ValueError(f"score {score} must be finite and not negative")
        if self._complete:
            self._scores = []
        self._scores.append(score)
        self._complete = math.fsum(self._scores) >= self._enough
        return self._complete

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weights of the micro-batches since the last update, or of an update's right after it. Their sum is 1.

        They are proportional to the scores, or equal if all scores are 0.
        """
        scores = np.array(self._scores)
        total = scores.sum()
        return scores / total if total > 0 else np.full(len(scores), 1 / max(len(scores), 1))
