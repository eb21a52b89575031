"""Computes samples, steps, reports and cost of a run, and checks them before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.settings import Amount, Points
from adaptive_ray.errors import UserError
from schedulers import Candidate
from schedulers.race import MIN_REPORTS
from schedulers.rerace import Rerace, ReracePlan
from trainables.settings.time_budget import TimeBudget

#: Maximum number of training images and of held-out images of the online kNN accuracy.
BANK, QUERIES = 2048, 1024
#: Measurements of the online kNN accuracy with evaluation.every = auto: at most this many, so few that they take this
#: share of the training time, and none if these were fewer than the minimum.
_KNN_POINTS, _KNN_SHARE, _LEAST_KNN_POINTS = 20, 0.02, 4
#: Time to measure with an image, relative to the time to train on it. 0.19 to 0.32 were measured on two CPU cores.
_KNN_COST = 0.25

#: Minimum turns per candidate with explore = rotate.
_TURNS = 10


@dataclass(frozen=True)
class Plan:
    """Sizes of a run, in samples (images, not views).

    With a budget in minutes, ``budget``, ``window`` and ``evaluate_every`` are one epoch until a candidate's throughput
    is known; ``time`` converts it then.
    """

    candidates: tuple[Candidate, ...]
    trials: tuple[Candidate, ...]  # with their own trial; only one if candidates rotate within a run
    updates: Mapping[Candidate, int]  # images per update; with adaptive accumulation the measured mean or the minimum
    epoch: int  # number of training images
    budget: int  # of the winner
    window: int  # budget of each trial in the race
    evaluate_every: int  # between two reports
    turn: int  # with explore = rotate
    rerace: Rerace  # see ``LossExtrapolationScheduler``
    knn_every: int | None = None  # between two measurements of the online kNN accuracy; None: not measured
    time: TimeBudget | None = None  # a budget in minutes

    @classmethod
    def of(cls, config: ExperimentConfig, images: int, updates: Mapping[Candidate, int] | None = None) -> Plan:
        """Plans a run on ``images`` training images.

        If possible, reports are placed on a grid of samples that the updates of all candidates hit exactly.

        Args:
            config: Configuration.
            images: Number of training images.
            updates: Measured images per update of each candidate; None: as configured.

        Raises:
            UserError: An update needs more images than there are, the window exceeds the budget, or it is too short.
        """
        updates = updates or {candidate: _images(config, candidate) for candidate in config.choices}
        largest = max(updates, key=lambda candidate: updates[candidate])
        most = updates[largest]
        if most > images:
            where, way_out = "candidates", "remove it or use more data"
            if config.accumulation is not None:
                where, way_out = "accumulation", "lower alpha or use more data"
            raise UserError(f"{where}: {_described(largest, most)} exceeds the {images:,} training images; {way_out}")
        races = config.explore == "race" and len(updates) > 1
        if config.budget.minutes is not None:
            return cls._of_minutes(config, images, updates, races=races)
        chosen = config.race.window or Amount(epochs=10)
        budget, window = config.budget.of(images), chosen.of(images)
        if not races:
            window = min(window, budget)
        if budget < window:
            raise UserError(
                f"budget = {_written(config.budget, budget)} is less than race.window = "
                f"{_written(chosen, window)}; raise the budget or shorten the window"
            )
        if races and window < MIN_REPORTS * most:
            raise UserError(
                f"race.window = {_written(chosen, window)} allows {window // most} "
                f"steps of {_described(largest, most)}; the race needs at least {MIN_REPORTS}"
            )
        every = max(window // config.race.evaluations, 1)
        grid = math.lcm(*(candidate.images_per_update for candidate in config.choices))
        if grid <= every:
            every = every // grid * grid
        window = min(every * max(round(window / every), 1), budget)
        rerace = _rerace(config)
        _check_rerace(rerace, window, budget)
        candidates = tuple(updates)
        trials = candidates if races else candidates[:1]
        # A turn is an epoch, or less in a short run, so that each candidate has several turns.
        turn = max(min(images, budget // (_TURNS * len(candidates))), 2 * every)
        return cls(
            candidates, trials, updates, images, budget, window, every, turn, rerace, _knn_every(config, budget, images)
        )

    @classmethod
    def _of_minutes(
        cls, config: ExperimentConfig, images: int, updates: Mapping[Candidate, int], *, races: bool
    ) -> Plan:
        budget = 60 * (config.budget.minutes or 0.0)
        window = 60 * (config.race.window.minutes or 0.0) if config.race.window is not None else budget / 10
        if races and window >= budget:
            raise UserError(
                f"budget = {budget / 60:g} minutes is not more than race.window = {window / 60:g} minutes; raise the "
                "budget or shorten the window"
            )
        candidates = tuple(updates)
        time = TimeBudget(budget, window if races else budget, config.race.evaluations)
        trials = candidates if races else candidates[:1]
        rerace = _rerace(config)
        _check_rerace(rerace, window, budget)
        every = config.evaluation.every
        if every == "auto":  # as rarely as its cost requires
            knn_every: int | None = max(math.ceil(_KNN_COST * (min(BANK, images) + QUERIES) / _KNN_SHARE), images)
        else:
            knn_every = every.of(images) if every is not None else None
        return cls(candidates, trials, updates, images, images, images, images, images, rerace, knn_every, time)

    def sharing(self, slowdown: float) -> Plan:
        """Returns the plan of races that take ``slowdown`` windows each because candidates share devices.

        With a budget in minutes, the windows of the others are not available to the winner. Those of races that only
        start on a deviation are not known in advance: they are added to the budget.

        Raises:
            UserError: The budget is too short for that.
        """
        if self.time is None:
            return self
        others = self._known_races * (slowdown - 1) * self.time.window
        left = self.time.budget - others
        if left <= self.time.window and len(self.trials) > 1:
            a_race = "the race takes" if self._known_races == 1 else f"{self._known_races} races take"
            raise UserError(
                f"budget = {self.time.budget / 60:g} minutes is too short: {len(self.trials)} candidates share "
                f"devices, so that {a_race} {slowdown:g} x {self.time.window / 60:g} minutes; use at least "
                f"{(others + 2 * self.time.window) / 60:g} minutes, or shorten race.window"
            )
        _check_rerace(self.rerace, self.time.window, left)
        return replace(self, time=replace(self.time, budget=left))

    @property
    def explore_limit(self) -> int:
        """Maximum samples spent on losing candidates, if none is pruned early."""
        races = self.budget // self.window if self.rerace == "on_deviation" else self._known_races
        return races * (len(self.trials) - 1) * self.window

    @property
    def _known_races(self) -> int:
        """Races that take place in any case."""
        return 1 + (len(self.rerace["at"]) if isinstance(self.rerace, Mapping) else 0)

    def steps(self, candidate: Candidate) -> int:
        """Optimizer steps of a full run."""
        return math.ceil(self.budget / self.updates[candidate])


def _rerace(config: ExperimentConfig) -> Rerace:
    return {"at": config.race.rerace.at} if isinstance(config.race.rerace, Points) else config.race.rerace


def _check_rerace(rerace: Rerace, window: float, budget: float) -> None:
    try:
        ReracePlan.of(rerace, window=window, rerace_window=None, budget=budget)
    except ValueError as error:
        raise UserError(f"race.rerace: {error}") from None


def _images(config: ExperimentConfig, candidate: Candidate) -> int:
    """Images per update; the minimum with adaptive accumulation."""
    informed = config.accumulation
    return candidate.images_per_update if informed is None else informed.least_images(candidate.batch_size)


def _knn_every(config: ExperimentConfig, budget: int, images: int) -> int | None:
    every = config.evaluation.every
    if isinstance(every, Amount):
        if (samples := every.of(images)) > budget:
            raise UserError(
                f"evaluation.every = {_written(every, samples)} exceeds the budget of {budget:,} samples; lower it, or "
                "set it to null for no measurements during training"
            )
        return samples
    points = min(int(_KNN_SHARE * budget / (_KNN_COST * (min(BANK, images) + QUERIES))), _KNN_POINTS)
    return budget // points if every == "auto" and points >= _LEAST_KNN_POINTS else None


def _described(candidate: Candidate, images: int) -> str:
    if images == candidate.batch_size:
        return f"batch size {candidate.batch_size:,}"
    return f"batch size {candidate.key} ({images:,} images per update)"


def _written(amount: Amount, samples: int) -> str:
    return f"{samples:,} samples" + (f" ({amount.epochs:g} epochs)" if amount.epochs is not None else "")
