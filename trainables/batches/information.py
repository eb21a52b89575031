"""Method 4: when accumulated batches hold enough of the data's distribution to make an update."""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainables.batches.scores import ScoreName

#: Sums of scores that differ by rounding alone are equal.
ROUNDING = 1e-9


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
        "carry", description="what an epoch's end finds unfinished continues in the next one, or makes an update there"
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
        needed = math.ceil(self.alpha * (1 - self.tolerance) - ROUNDING)
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
        return batch_size * max(math.ceil(self.alpha * (1 - self.tolerance) - ROUNDING), 1)

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
