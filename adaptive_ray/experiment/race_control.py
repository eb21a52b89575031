"""The driver's side of a race: its coordinator, and how the winner continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.plan import Plan
from adaptive_ray.ray_cluster.layout import Layout
from adaptive_ray.ray_cluster.placement_groups import places
from schedulers import LossExtrapolationScheduler, Race
from schedulers.race_series import RaceSeries
from trainables.on_ray.coordinator import Measurement, TrialCoordinator
from trainables.on_ray.race_terms import RaceTerms
from trainables.report import TrainingReport

#: Seconds between two checks for workers that cannot be placed.
_LOOK_EVERY = 3.0


class RaceControl(tune.Callback):  # type: ignore[misc]
    """Starts the coordinator of a race, tells it which trials run, and continues the winner in place where it can.

    Args:
        config: Configuration of the run.
        plan: Plan of the run.
        layout: Workers in the race and of the winner.
        reports: Reports of earlier sessions, by candidate.
        joined: Whether others use the Ray cluster, too: a winner in place then has no more than it has reserved.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        plan: Plan,
        layout: Layout,
        reports: Mapping[str, Iterable[TrainingReport]],
        *,
        joined: bool = False,
    ) -> None:
        self._config, self._plan, self._layout = config, plan, layout
        self._in_place = layout.race if joined else replace(layout.winner, count=layout.race.count)
        self._measured = {
            key: Measurement(report.images_per_second_alone, bool(report.in_place))
            for key, several in reports.items()
            for report in several
            if report.images_per_second_alone is not None
        }
        self._scheduler: LossExtrapolationScheduler | None = None
        self._coordinator: Any = None
        self._running: set[str] = set()
        self._over, self._races = False, 1
        self._pending, self._looked = False, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks; each session creates its own

    def start(self, scheduler: LossExtrapolationScheduler, keys: Iterable[str]) -> RaceTerms:
        """Starts the coordinator on this node, and returns the terms for the candidates that will train."""
        layout, self._scheduler, races = self._layout, scheduler, len(self._plan.trials) > 1
        series, self._races = scheduler.series, len(scheduler.series.races)
        self._over = not races or series.race.over or self._races > 1
        starting = min(layout.concurrent, len([key for key in keys if key not in self._measured]))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0)(TrialCoordinator).options(scheduling_strategy=here)
        origins = _origins(series) if self._races > 1 else None
        self._coordinator = actor.remote(starting, self._measured, over=self._over, origins=origins)
        return RaceTerms(
            coordinator=self._coordinator,
            window=self._plan.window if races else 0,
            threads=layout.race.threads if races else layout.winner.threads,
            in_place_threads=self._in_place.threads,
            winner_threads=layout.winner.threads,
            winner_workers=layout.winner.count,
            winner_memory=(layout.winner.memory or 0, layout.winner.gpus) > (layout.race.memory or 0, layout.race.gpus),
            restart=self._config.winner.workers != "auto" and layout.winner.count != layout.race.count,
            time=self._plan.time,
        )

    def winner_config(self) -> dict[str, Callable[[Race], Any]]:
        """Returns functions of a race that was won for its winner's resources, by the names in a configuration."""
        return {name: partial(self._winner_entry, name) for name in self._layout.winner.trial_config()}

    def _winner_entry(self, name: str, race: Race) -> Any:
        measured = self._measured.get(str(race.winner))
        in_place = measured is not None and measured.in_place
        return (self._in_place if in_place else self._layout.winner).trial_config()[name]

    def reset_config(self, trial: Trial, entries: Mapping[str, Any]) -> bool:
        """Continues the winner in place if it has all that it needs; see ``LossExtrapolationScheduler``."""
        self._end_race()
        measured = self._measured.get(trial.config["candidate"])
        return measured is not None and measured.in_place and entries["swap"] is None

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Remembers the measurement of a trial. The scheduler has already handled the result."""
        report = TrainingReport.from_dict(result)
        if report.images_per_second_alone is not None:
            measured = Measurement(report.images_per_second_alone, bool(report.in_place))
            self._measured.setdefault(trial.config["candidate"], measured)
        series = self._scheduler.series if self._scheduler is not None else None
        if series is not None and len(series.races) > self._races:
            self._races, self._over = len(series.races), True
            ray.get(self._coordinator.race_again.remote(_origins(series)))  # before the candidates start

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Tells the coordinator which trials have stopped, and frees places that other trials need."""
        if self._coordinator is None or self._scheduler is None:
            return
        if self._scheduler.race.over:
            self._end_race()
        status = {trial.config["candidate"]: trial.status for trial in trials}
        running = {key for key, now in status.items() if now == Trial.RUNNING}
        for key in self._running - running:
            finished = status.get(key) in (Trial.TERMINATED, Trial.ERROR)
            self._coordinator.leave.remote(key, for_good=finished)
        self._running = running
        if not self._scheduler.trials_wait_in_place:
            self._pending = False
        elif self._lacks_place():
            self._scheduler.pause_waiting()

    def _lacks_place(self) -> bool:
        """Returns whether workers could not be placed at two checks in a row, which are seconds apart."""
        if (now := time.monotonic()) - self._looked < _LOOK_EVERY:
            return False
        before, self._looked = self._pending, now
        self._pending = any(group["state"] in ("PENDING", "RESCHEDULING") for group in places().values())
        return before and self._pending

    def _end_race(self) -> None:
        if not self._over and self._coordinator is not None:
            self._over = True
            self._coordinator.end_race.remote()


def _origins(series: RaceSeries) -> dict[str, tuple[float, float]]:
    return {str(key): series.origin(key) for key in series.race.keys}
