"""What a configuration comes to on given data: samples, steps, reports and cost, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adaptive_ray.config import Amount, ExperimentConfig
from adaptive_ray.errors import UserError
from schedulers import Candidate

#: Nobody is dropped before so many reports of every candidate: fewer points do not show where a curve is going.
MIN_REPORTS = 4


@dataclass(frozen=True)
class Plan:
    """All numbers in samples (images, not views)."""

    candidates: tuple[Candidate, ...]
    epoch: int
    budget: int
    window: int
    evaluate_every: int

    @classmethod
    def of(cls, config: ExperimentConfig, images: int) -> Plan:
        """The plan for ``images`` training images.

        Reports come on a grid of samples that all candidates' updates hit exactly, where there is one.

        Raises:
            UserError: An update takes more images than there are, the window does not fit into the budget, or it is
                too short.
        """
        largest = max(config.candidates, key=lambda candidate: candidate.images_per_update)
        if largest.images_per_update > images:
            raise UserError(
                f"candidates: {_described(largest)} is larger than the {images:,} training images; "
                f"remove it or use more data"
            )
        budget, window = config.budget.of(images), config.race.window.of(images)
        if budget < window:
            raise UserError(
                f"budget = {_written(config.budget, budget)} is smaller than race.window = "
                f"{_written(config.race.window, window)}; raise the budget or shorten the window"
            )
        if window < MIN_REPORTS * largest.images_per_update:
            raise UserError(
                f"race.window = {_written(config.race.window, window)} holds {window // largest.images_per_update} "
                f"steps of {_described(largest)}; at least {MIN_REPORTS} are needed to see where a curve is going"
            )
        every = max(window // config.race.evaluations, 1)
        grid = math.lcm(*(candidate.images_per_update for candidate in config.candidates))
        if grid <= every:
            every = every // grid * grid
        window = min(every * max(round(window / every), 1), budget)
        return cls(tuple(config.candidates), images, budget, window, every)

    @property
    def explore_limit(self) -> int:
        """The most that the candidates that lose can cost: nobody is dropped before the window is spent."""
        return (len(self.candidates) - 1) * self.window

    def steps(self, candidate: Candidate) -> int:
        """Optimizer steps of a whole run."""
        return math.ceil(self.budget / candidate.images_per_update)


def _described(candidate: Candidate) -> str:
    if candidate.accumulation == 1:
        return f"batch size {candidate.batch_size:,}"
    return f"batch size {candidate.key} ({candidate.images_per_update:,} images per update)"


def _written(amount: Amount, samples: int) -> str:
    return f"{samples:,} samples" + (f" ({amount.epochs:g} epochs)" if amount.epochs is not None else "")
