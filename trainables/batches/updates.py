"""Plans the updates of adaptive accumulation ahead, from the order of the images."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from trainables.batches.information import InformationAccumulator
from trainables.batches.order import SampleStream
from trainables.batches.scores import BatchScore
from trainables.settings import InformationSettings
from trainables.settings.accumulation import ROUNDING

#: Bisection steps of ``alpha_for``.
_HALVINGS = 50


@dataclass(frozen=True)
class Update:
    """The batches of one update."""

    weights: NDArray[np.float64]  # of each batch's gradient [k], sum 1
    scores: NDArray[np.float64]  # of each batch [k]; 1 without adaptive accumulation
    informed: bool = True  # False: the update ended before the scores reached alpha
    shared: bool = False  # whether the batches are each other's negatives

    @classmethod
    def of_equals(cls, batches: int) -> Update:
        """Returns an update of ``batches`` batches with equal weights."""
        return cls(np.full(batches, 1 / batches), np.ones(batches))

    @property
    def groups(self) -> list[range]:
        """Groups of batches that are each other's negatives."""
        count = len(self.weights)
        return [range(count)] if self.shared else [range(number, number + 1) for number in range(count)]


class AdaptiveAccumulation:
    """Chooses the micro-batches of each update by their scores; the last update ends with the budget in samples."""

    def __init__(self, settings: InformationSettings, stream: SampleStream, score: BatchScore, budget: int) -> None:
        self._settings, self._stream, self._score, self._budget = settings, stream, score, budget
        self._alphas: dict[int, float] = {}

    def at(self, position: int, batch_size: int) -> Update:
        """Returns the update at ``position`` (in samples), made of micro-batches of ``batch_size`` images."""
        settings, length = self._settings, self._stream.length
        accumulator = InformationAccumulator(self.alpha(batch_size), settings.tolerance)
        scores: list[float] = []
        epoch, shared = position // length, settings.negatives == "shared"
        informed = ends = False
        while not (informed or ends):
            scores.append(self._score(self._stream.take(position, batch_size)))
            informed = accumulator.add(scores[-1])
            position += batch_size
            ends = len(scores) == settings.max_micro_batches or position >= self._budget
            ends = ends or (settings.remainder == "apply" and position // length > epoch)
            # More than an epoch would hold images twice.
            ends = ends or (shared and (len(scores) + 1) * batch_size > length)
        return Update(accumulator.weights, np.array(scores), informed, shared)

    def until(self, position: int, samples: int, batch_size: int) -> list[Update]:
        """Returns the updates from ``position`` until ``samples`` have been seen."""
        updates = []
        while position < samples:
            updates.append(self.at(position, batch_size))
            position += len(updates[-1].weights) * batch_size
        return updates

    def mean_images(self, batch_size: int) -> float:
        """Returns the mean number of images per update in the first epoch.

        Raises:
            ValueError: Alpha is never reached.
        """
        updates = self.until(0, min(self._stream.length, self._budget), batch_size)
        counts = [len(update.weights) for update in updates]
        if sum(counts) * batch_size < self._budget and not any(update.informed for update in updates):
            fullest = max(updates, key=lambda update: float(update.scores.sum()))
            raise ValueError(
                f"alpha = {self.alpha(batch_size):g} is never reached: the scores of {len(fullest.scores)} "
                f"micro-batches of {batch_size}, the most in an update, add up to {fullest.scores.sum():.3g}; "
                "lower alpha"
            )
        return batch_size * float(np.mean(counts[:-1] or counts))  # the budget may cut the last one short

    def alpha(self, batch_size: int) -> float:
        """Returns the sum of scores that an update of micro-batches of this size needs.

        Raises:
            ValueError: ``alpha: auto`` cannot reach ``images_per_update``.
        """
        settings = self._settings
        if settings.alpha != "auto":
            return settings.alpha
        if batch_size not in self._alphas:
            settings.check(batch_size)
            starts = range(0, max(self._stream.length // batch_size, 1) * batch_size, batch_size)
            scores = [self._score(self._stream.take(start, batch_size)) for start in starts]
            wanted = (settings.images_per_update or 0) / batch_size
            self._alphas[batch_size] = alpha_for(scores, wanted, settings.tolerance, settings.max_micro_batches)
        return self._alphas[batch_size]


def alpha_for(scores: Sequence[float], wanted: float, tolerance: float, most: int) -> float:
    """Returns the alpha for which the mean number of micro-batches per update is closest to ``wanted``.

    ``scores`` are those of an epoch's micro-batches in order, repeated if ``wanted`` is larger than their number. An
    update has at most ``most`` micro-batches.

    Raises:
        ValueError: All scores are 0.
    """
    rounds = math.ceil(8 * wanted / len(scores))
    sums = [0.0, *accumulate(list(scores) * rounds)]
    if not sums[-1] > 0:
        raise ValueError("all scores are 0: no batch of this order represents the data; shuffle it or set alpha")

    def mean(enough: float) -> float:
        """Returns the mean number of micro-batches per update for the sum ``enough``."""
        at, updates = 0, 0
        while at < len(sums) - 1:
            reached = bisect_left(sums, sums[at] + enough * (1 - ROUNDING), at + 1)
            at, updates = min(max(reached, at + 1), at + most), updates + 1
        return (len(sums) - 1) / updates

    limit = most * max(scores)

    def first(above: Callable[[float], bool]) -> float:
        """Returns the sum from which on ``above`` is true, by bisection."""
        low, high = 0.0, limit
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if above(mean(middle)) else (middle, high)
        return high

    edge = first(lambda batches: batches >= wanted)
    nearest = min(mean(edge * (1 - 1e-6)), mean(edge), key=lambda batches: abs(batches - wanted))
    # An interval of sums gives these updates; its middle is the most robust choice.
    low, high = first(lambda batches: batches >= nearest), first(lambda batches: batches > nearest)
    return (low + high) / 2 / (1 - tolerance)
