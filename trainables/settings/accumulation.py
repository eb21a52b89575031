"""Settings of adaptive accumulation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, model_validator

from schedulers import Candidate
from trainables.settings.base import Settings

#: Tolerance for rounding in sums of scores.
ROUNDING = 1e-9

#: Names of the scores.
ScoreName = Literal["histogram", "frechet", "mmd"]


class InformationSettings(Settings):
    """Settings of adaptive accumulation. The accumulated batches are called micro-batches here."""

    until: Literal["information"] = Field(description="accumulate until the scores add up to alpha")
    alpha: Literal["auto"] | float = Field(
        description="sum of micro-batch scores (each from 0 to 1) that an update needs; auto: chosen so that an update "
        "has images_per_update images on average"
    )
    images_per_update: int | None = Field(None, ge=2, description="with alpha: auto, mean number of images per update")
    tolerance: float = Field(0.05, ge=0, lt=1, description="fraction of alpha by which the sum may fall short")
    score: ScoreName = Field(
        "histogram",
        description="how a micro-batch is compared with the data: histogram of clusters, Frechet distance or MMD of "
        "features",
    )
    max_micro_batches: int = Field(64, ge=1, description="largest number of micro-batches per update")
    remainder: Literal["carry", "apply"] = Field(
        "carry", description="at the end of an epoch: carry micro-batches over to the next one, or apply an update"
    )
    negatives: Literal["plain", "shared"] = Field(
        "plain",
        description="plain: each micro-batch has its own negatives; shared: all images of an update are negatives of "
        "each other (GradCache)",
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.alpha == "auto":
            if self.images_per_update is None:
                raise ValueError("alpha: auto needs images_per_update, the mean number of images per update")
            return self
        if self.images_per_update is not None:
            raise ValueError(f"images_per_update needs alpha: auto; remove it, or alpha = {self.alpha:g}")
        if not self.alpha > 0:
            raise ValueError(f"alpha = {self.alpha:g} must be above 0")
        needed = math.ceil(self.alpha * (1 - self.tolerance) - ROUNDING)
        if needed > self.max_micro_batches:
            raise ValueError(
                f"alpha = {self.alpha:g} is never reached: a score is at most 1 and max_micro_batches = "
                f"{self.max_micro_batches}; lower alpha or allow at least {needed}"
            )
        return self

    def least_images(self, batch_size: int) -> int:
        """Returns the smallest number of images per update; with ``alpha: auto``, the mean number."""
        if self.alpha == "auto":
            return max(self.images_per_update or 0, batch_size)
        return batch_size * max(math.ceil(self.alpha * (1 - self.tolerance) - ROUNDING), 1)

    def check(self, batch_size: int) -> None:
        """Checks ``images_per_update`` for micro-batches of ``batch_size``.

        Raises:
            ValueError: ``images_per_update`` cannot be reached.
        """
        wanted = self.images_per_update
        if wanted is not None and not batch_size <= wanted <= self.max_micro_batches * batch_size:
            raise ValueError(
                f"images_per_update = {wanted}: up to {self.max_micro_batches} micro-batches of {batch_size} have "
                f"{batch_size} to {self.max_micro_batches * batch_size} images; choose a value in this range"
            )


def check_accumulation(information: InformationSettings, candidates: Iterable[Candidate]) -> None:
    """Checks that candidates can be trained with adaptive accumulation.

    Raises:
        ValueError: A candidate has a fixed accumulation, or ``images_per_update`` cannot be reached.
    """
    for candidate in candidates:
        if candidate.accumulation > 1:
            raise ValueError(
                f"candidate {candidate.key} accumulates {candidate.accumulation} batches per update, but adaptive "
                f"accumulation chooses the number; use {candidate.batch_size}"
            )
        information.check(candidate.batch_size)
