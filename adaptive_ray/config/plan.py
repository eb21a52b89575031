"""Plans a run on given data: samples, steps, reports and cost, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.settings import Amount, Points
from adaptive_ray.errors import UserError
from schedulers import Candidate
from schedulers.race import MIN_REPORTS
from schedulers.rerace import Rerace, ReracePlan

#: Turns of each candidate in a run, at least.
_TURNS = 10


@dataclass(frozen=True)
class Plan:
    """All numbers in samples (images, not views).

    Args:
        candidates: To choose from.
        trials: Those that are trained from the start, side by side: one only, where candidates take turns in it.
        updates: Images of each candidate's update; where accumulating until informed decides, on average if that has
            been measured, else at least.
        epoch: Training images.
        budget: The winner's whole run.
        window: What each trial may spend in a race.
        evaluate_every: From report to report.
        turn: Of a candidate, where they take turns.
        rerace: ``LossExtrapolationScheduler``'s setting.
    """

    candidates: tuple[Candidate, ...]
    trials: tuple[Candidate, ...]
    updates: Mapping[Candidate, int]
    epoch: int
    budget: int
    window: int
    evaluate_every: int
    turn: int
    rerace: Rerace

    @classmethod
    def of(cls, config: ExperimentConfig, images: int, updates: Mapping[Candidate, int] | None = None) -> Plan:
        """The plan for ``images`` training images.

        ``updates`` are the images of each candidate's update where they have been measured; None: as configured.
        Reports come on a grid of samples that all candidates' updates hit exactly, where there is one.

        Raises:
            UserError: An update takes more images than there are, a race does not fit into the budget, or it is too
                short.
        """
        updates = updates or {candidate: _images(config, candidate) for candidate in config.choices}
        largest = max(updates, key=lambda candidate: updates[candidate])
        most = updates[largest]
        if most > images:
            where, way_out = "candidates", "remove it or use more data"
            if config.accumulation is not None:
                where, way_out = "accumulation", "ask for less information in an update or use more data"
            raise UserError(
                f"{where}: {_described(largest, most)} is larger than the {images:,} training images; {way_out}"
            )
        budget, window = config.budget.of(images), config.race.window.of(images)
        races = config.explore == "race" and len(updates) > 1
        if not races:
            window = min(window, budget)
        if budget < window:
            raise UserError(
                f"budget = {_written(config.budget, budget)} is smaller than race.window = "
                f"{_written(config.race.window, window)}; raise the budget or shorten the window"
            )
        if races and window < MIN_REPORTS * most:
            raise UserError(
                f"race.window = {_written(config.race.window, window)} holds {window // most} "
                f"steps of {_described(largest, most)}; at least {MIN_REPORTS} are needed to see where a curve is going"
            )
        every = max(window // config.race.evaluations, 1)
        grid = math.lcm(*(candidate.images_per_update for candidate in config.choices))
        if grid <= every:
            every = every // grid * grid
        window = min(every * max(round(window / every), 1), budget)
        rerace: Rerace = {"at": config.race.rerace.at} if isinstance(config.race.rerace, Points) else config.race.rerace
        try:
            ReracePlan.of(rerace, window=window, rerace_window=None, budget=budget)
        except ValueError as error:
            raise UserError(f"race.rerace: {error}") from None
        candidates = tuple(updates)
        trials = candidates if races else candidates[:1]
        # A turn is an epoch, or less in a short run: each candidate must have had several before the end.
        turn = max(min(images, budget // (_TURNS * len(candidates))), 2 * every)
        return cls(candidates, trials, updates, images, budget, window, every, turn, rerace)

    @property
    def explore_limit(self) -> int:
        """The most that the candidates that lose can cost: nobody is pruned before the window is spent."""
        if self.rerace == "on_deviation":
            races = self.budget // self.window
        else:
            races = 1 + (len(self.rerace["at"]) if isinstance(self.rerace, Mapping) else 0)
        return races * (len(self.trials) - 1) * self.window

    def steps(self, candidate: Candidate) -> int:
        """Optimizer steps of a whole run."""
        return math.ceil(self.budget / self.updates[candidate])


def _images(config: ExperimentConfig, candidate: Candidate) -> int:
    """Of an update; the least where accumulating until informed decides."""
    informed = config.accumulation
    return candidate.images_per_update if informed is None else informed.least_images(candidate.batch_size)


def _described(candidate: Candidate, images: int) -> str:
    if images == candidate.batch_size:
        return f"batch size {candidate.batch_size:,}"
    return f"batch size {candidate.key} ({images:,} images per update)"


def _written(amount: Amount, samples: int) -> str:
    return f"{samples:,} samples" + (f" ({amount.epochs:g} epochs)" if amount.epochs is not None else "")
