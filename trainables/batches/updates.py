"""Which batches make an update, where their information decides it: known ahead from the order of the images alone."""

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

#: Halvings of the interval in which ``alpha_for`` looks.
_HALVINGS = 50


@dataclass(frozen=True)
class Update:
    """The batches of one update.

    Args:
        weights: What each batch's gradient counts, sum 1 [k].
        scores: The information in each [k]; 1 where nobody asks for it.
        informed: Whether the scores are enough; an end of an epoch or of the budget, or a limit, may have come first.
        shared: Whether the batches are each other's negatives.
    """

    weights: NDArray[np.float64]
    scores: NDArray[np.float64]
    informed: bool = True
    shared: bool = False

    @classmethod
    def of_equals(cls, batches: int) -> Update:
        """The mean of so many batches."""
        return cls(np.full(batches, 1 / batches), np.ones(batches))

    @property
    def groups(self) -> list[range]:
        """Numbers of the batches that are each other's negatives, group after group."""
        count = len(self.weights)
        return [range(count)] if self.shared else [range(number, number + 1) for number in range(count)]


class AdaptiveAccumulation:
    """Which micro-batches make the update that begins at a position.

    Args:
        settings: When they are enough.
        stream: The order of the images.
        score: Of a micro-batch.
        budget: The whole run in samples; its last update is made of what is there.
    """

    def __init__(self, settings: InformationSettings, stream: SampleStream, score: BatchScore, budget: int) -> None:
        self._settings, self._stream, self._score, self._budget = settings, stream, score, budget
        self._alphas: dict[int, float] = {}

    def at(self, position: int, batch_size: int) -> Update:
        """The update's micro-batches of ``batch_size`` images from ``position`` (samples seen) on."""
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
            # More than an epoch would make images their own negatives.
            ends = ends or (shared and (len(scores) + 1) * batch_size > length)
        return Update(accumulator.weights, np.array(scores), informed, shared)

    def until(self, position: int, samples: int, batch_size: int) -> list[Update]:
        """The updates from ``position`` on until ``samples`` have been seen."""
        updates = []
        while position < samples:
            updates.append(self.at(position, batch_size))
            position += len(updates[-1].weights) * batch_size
        return updates

    def mean_images(self, batch_size: int) -> float:
        """Images of an update, on average over the first epoch.

        Raises:
            ValueError: None of them is informed: alpha is never reached.
        """
        updates = self.until(0, min(self._stream.length, self._budget), batch_size)
        counts = [len(update.weights) for update in updates]
        if sum(counts) * batch_size < self._budget and not any(update.informed for update in updates):
            fullest = max(updates, key=lambda update: float(update.scores.sum()))
            raise ValueError(
                f"alpha = {self.alpha(batch_size):g} is never reached: the {len(fullest.scores)} micro-batches of "
                f"{batch_size} that an update may have here score {fullest.scores.sum():.3g} together; lower alpha"
            )
        return batch_size * float(np.mean(counts[:-1] or counts))  # the last one may end where the budget does

    def alpha(self, batch_size: int) -> float:
        """What the scores of micro-batches of this size must add up to.

        Raises:
            ValueError: ``alpha: auto`` cannot have its images per update.
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
    """The alpha with which updates have ``wanted`` micro-batches on average, as nearly as there is one.

    Args:
        scores: Of the micro-batches of an epoch, in their order; repeated should ``wanted`` be more.
        wanted: Micro-batches of an update, on average.
        tolerance: Share of alpha that may be lacking.
        most: Micro-batches of an update.

    Raises:
        ValueError: All scores are 0: no alpha tells updates apart.
    """
    rounds = math.ceil(8 * wanted / len(scores))
    sums = [0.0, *accumulate(list(scores) * rounds)]
    if not sums[-1] > 0:
        raise ValueError("all scores are 0: no batch of this order resembles the data; shuffle it, or fix alpha")

    def mean(enough: float) -> float:
        """Micro-batches of an update whose scores add up to ``enough``."""
        at, updates = 0, 0
        while at < len(sums) - 1:
            reached = bisect_left(sums, sums[at] + enough * (1 - ROUNDING), at + 1)
            at, updates = min(max(reached, at + 1), at + most), updates + 1
        return (len(sums) - 1) / updates

    limit = most * max(scores)

    def first(above: Callable[[float], bool]) -> float:
        """Where ``above``, which is false and then true as sums grow, turns true."""
        low, high = 0.0, limit
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if above(mean(middle)) else (middle, high)
        return high

    edge = first(lambda batches: batches >= wanted)
    nearest = min(mean(edge * (1 - 1e-6)), mean(edge), key=lambda batches: abs(batches - wanted))
    # Sums of scores in a whole interval make such updates: its middle is the farthest from making others.
    low, high = first(lambda batches: batches >= nearest), first(lambda batches: batches > nearest)
    return (low + high) / 2 / (1 - tolerance)
