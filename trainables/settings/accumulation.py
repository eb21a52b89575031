"""Settings of adaptive accumulation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schedulers import Candidate

#: Sums of scores that differ by rounding alone are equal.
ROUNDING = 1e-9

#: Names of the scores, as settings have them.
ScoreName = Literal["histogram", "frechet", "mmd"]


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


def check_accumulation(information: InformationSettings, candidates: Iterable[Candidate]) -> None:
    """Whether candidates can leave it to their batches' information when they make an update.

    Raises:
        ValueError: One of them fixes a number itself, or ``alpha: auto`` cannot have its images.
    """
    for candidate in candidates:
        if candidate.accumulation > 1:
            raise ValueError(
                f"{candidate.key} fixes {candidate.accumulation} batches for an update, which accumulation until "
                f"information decides; leave one out"
            )
        information.check(candidate.batch_size)
