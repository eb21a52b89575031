"""Method 4: batches are accumulated until they hold enough of the data's distribution, and then make one update."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainables.batches.order import SampleStream
from trainables.batches.scores import BatchScore, ScoreName

#: Sums of scores that differ by rounding alone are equal.
_ROUNDING = 1e-9
#: Halvings of the interval in which ``alpha_for`` looks.
_HALVINGS = 50


class InformationSettings(BaseModel):
    """When accumulated batches are enough for an update. The batches are called micro-batches here."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    until: Literal["information"] = Field(description="accumulate until the scores add up to alpha")
    alpha: Literal["auto"] | float = Field(
        description="what the scores of an update's micro-batches, each from 0 to 1, must add up to; auto: so that an "
        "update has images_per_update on average"
    )
    images_per_update: int | None = Field(None, ge=2, description="with alpha: auto, images of an update on average")
    tolerance: float = Field(0.05, ge=0, lt=1, description="share of alpha that may be lacking")
    score: ScoreName = Field(
        "histogram",
        description="how a micro-batch is compared with the data: shares of clusters, or features as normal "
        "distributions (frechet) or by their kernel mean (mmd)",
    )
    max_micro_batches: int = Field(64, ge=1, description="of an update, informed or not: no stall is longer")
    remainder: Literal["carry", "apply"] = Field(
        "carry", description="what an epoch's end finds unfinished goes on in the next one, or makes an update there"
    )
    negatives: Literal["plain", "shared"] = Field(
        "plain",
        description="plain accumulation: each micro-batch has its own negatives; shared: those of the whole update, "
        "with cached gradients",
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.alpha == "auto":
            if self.images_per_update is None:
                raise ValueError("alpha: auto needs images_per_update, the images of an update on average")
            return self
        if self.images_per_update is not None:
            raise ValueError(f"images_per_update is for alpha: auto; leave it out, or alpha = {self.alpha:g}")
        if not self.alpha > 0:
            raise ValueError(f"alpha = {self.alpha:g} must be above 0: without information there is nothing to learn")
        needed = math.ceil(self.alpha * (1 - self.tolerance) - _ROUNDING)
        if needed > self.max_micro_batches:
            raise ValueError(
                f"alpha = {self.alpha:g} is never reached: a score is at most 1, and max_micro_batches = "
                f"{self.max_micro_batches}; lower alpha or allow at least {needed}"
            )
        return self

    def least_images(self, batch_size: int) -> int:
        """What an update of micro-batches of ``batch_size`` takes at least; with ``alpha: auto``, on average."""
        if self.alpha == "auto":
            return max(self.images_per_update or 0, batch_size)
        return batch_size * max(math.ceil(self.alpha * (1 - self.tolerance) - _ROUNDING), 1)

    def check(self, batch_size: int) -> None:
        """Whether ``alpha: auto`` can have its images with micro-batches of ``batch_size``.

        Raises:
            ValueError: It cannot.
        """
        wanted = self.images_per_update
        if wanted is not None and not batch_size <= wanted <= self.max_micro_batches * batch_size:
            raise ValueError(
                f"images_per_update = {wanted}: up to {self.max_micro_batches} micro-batches of {batch_size} are "
                f"{batch_size} to {self.max_micro_batches * batch_size} images; choose among these"
            )


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
        self._enough = alpha * (1 - tolerance) - _ROUNDING * alpha
        self._scores: list[float] = []
        self._complete = False

    def add(self, score: float) -> bool:
        """Takes the next micro-batch's score. True: these are enough, update now; the next one begins anew.

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


class InformedUpdates:
    """Which micro-batches make the update that begins at a position: known ahead, on every worker alike.

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
            reached = bisect_left(sums, sums[at] + enough * (1 - _ROUNDING), at + 1)
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
