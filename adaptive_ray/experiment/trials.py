"""Runs the candidates of an experiment as Ray Tune trials, from the start or resumed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.plan import Plan
from adaptive_ray.errors import NoSurvivorError, UserError, WinnerFailedError
from adaptive_ray.experiment.race_control import RaceControl
from adaptive_ray.experiment.tune_callback import RunCallback
from adaptive_ray.ray_cluster.layout import Layout
from adaptive_ray.ray_cluster.placement import PlacementWatch
from adaptive_ray.run_directory.checkpoints import Checkpoints
from adaptive_ray.run_directory.directory import RunDirectory, describe
from adaptive_ray.run_directory.history import History
from schedulers import Candidate, LossExtrapolationScheduler, Race
from trainables.on_ray.failures import RETRIES
from trainables.on_ray.trial import run_trial
from trainables.report import TrainingReport
from trainables.settings import SwapSettings, TrainSettings

#: Resources of a trial, which only waits for its Ray Train workers. Ray does not accept an empty request.
_DRIVER = {"CPU": 0, "memory": 1 << 20}


class Trials:
    """The trials of an experiment that remain to be trained.

    Races continue from ``history``, and training after the reports in ``directory``. ``settings`` are by key of the
    candidate; ``joined`` says whether others use the Ray cluster, too. For ``clusters`` see ``train_worker``.

    Raises:
        UserError: There are reports, but no history.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        plan: Plan,
        settings: Mapping[str, TrainSettings],
        layout: Layout,
        directory: RunDirectory,
        history: History,
        clusters: dict[str, Any] | None = None,
        *,
        joined: bool = False,
    ) -> None:
        self._clusters = clusters
        self._config, self._plan, self._settings, self._layout = config, plan, settings, layout
        self._directory = directory
        if directory.reports() and not history.events:
            raise UserError(
                f"{directory.path} has reports but no events.jsonl: it was made by an earlier version, or the file was "
                "deleted; it cannot be resumed, so start a new run"
            )
        self._control = RaceControl(config, plan, layout, directory.reports(), joined=joined)
        self.scheduler = self._scheduler(history)
        directory.write_decisions(map(describe, self.scheduler.decisions))  # they follow from the events

    def _scheduler(self, history: History) -> LossExtrapolationScheduler:
        config, plan = self._config, self._plan
        scheduler = LossExtrapolationScheduler(
            "reference_loss",
            "min",
            seconds_attr="seconds",
            throughput_attr="images_per_second_alone",
            budget=plan.time.budget if plan.time else plan.budget,
            window=plan.time.window if plan.time else plan.window,
            axis="seconds" if plan.time else "samples",
            rule=config.race.rule,
            prune_below=config.race.prune_below,
            tolerance=config.race.tolerance,
            forecaster=config.race.forecaster,
            averaged=True,  # the reference loss is that of the EMA
            rerace=plan.rerace,
            patience=config.swap.patience,
            threshold=config.swap.threshold,
            winner_config={**self._control.winner_config(), "swap": self._swap()},
            reset_config=self._control.reset_config,
        )
        scheduler.set_state({"events": history.events})
        scheduler.series.record = history.append
        for candidate in plan.trials:
            scheduler.series.enter(candidate.key)
        return scheduler

    def _swap(self) -> SwapSettings | Callable[[Race], SwapSettings] | None:
        """Returns the winner's policy within its run; that of a race's winner depends on the race."""
        if self._config.explore == "rotate":
            return _swap_settings(self._config, self._plan)
        return partial(_swap_settings, self._config, self._plan) if self._config.swap.enabled else None

    def retry_failed(self) -> None:
        """Retries failed candidates from their last checkpoints."""
        if failed := self.scheduler.series.failed:
            self.scheduler.series.retry(failed)

    def run(self, data: ray.ObjectRef, callback: RunCallback, say: Callable[[str], None]) -> None:
        """Trains the candidates that are not pruned, until the winner has spent the budget.

        ``data`` is a reference to ``TrainingData`` in the object store. ``say`` receives a message for each candidate
        that is resumed from an earlier checkpoint than its last.

        Raises:
            UserError: A candidate has reported, and all of its checkpoints are corrupt or missing.
        """
        plan, race, series = self._plan, self.scheduler.race, self.scheduler.series
        if race.over and race.winner is None:
            return
        keys = [c.key for c in plan.trials if c.key in race.alive or series.may_rejoin(c.key)]
        checkpoints = Checkpoints(self._directory)
        starts: dict[Hashable, TrainingReport] = {}
        for key in keys:  # a candidate that rejoins forks from another one
            if key in race.alive and (found := checkpoints.newest(key)):
                starts[key], problem = found
                if problem:
                    say(f"batch size {key} is resumed from {starts[key].samples_seen:,} samples: {problem}")
        checkpoints.delete_unnamed()
        winner = str(race.winner)
        if winner in starts and race.spent(winner, starts[winner].samples_seen) >= race.budget:
            return
        paths = {key: report.checkpoint_path for key, report in starts.items()}
        self.scheduler.last_results = {key: report.to_dict() for key, report in starts.items()}
        alone = len(plan.trials) == 1
        storage = self._directory.path / "train"
        attempt = len(list(storage.glob("tune-*")))
        trainable = tune.with_parameters(
            run_trial,
            settings=self._settings,
            data=[data],
            storage=str(storage),
            clusters=self._clusters,
            race=None if alone and plan.time is None else self._control.start(self.scheduler, keys),
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, _DRIVER),
            param_space={
                "candidate": tune.grid_search(keys),
                "resume_from": tune.sample_from(lambda spec: paths.get(spec.config.candidate)),
                "run_tag": "start",
                "swap": self._swap() if alone else None,
                **(self._layout.winner if alone else self._layout.race).trial_config(),
            },
            tune_config=tune.TuneConfig(
                scheduler=self.scheduler,
                max_concurrent_trials=self._layout.concurrent,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{attempt}",
                storage_path=str(storage),
                callbacks=[callback, checkpoints, PlacementWatch(), self._control],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        )
        # Tune logs a traceback for every failed trial; the callback shows the reason.
        logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the run at once
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        tuner.fit()
        checkpoints.delete_unnamed()

    def winner(self) -> Candidate:
        """Returns the winner.

        Raises:
            WinnerFailedError: The winner has failed since.
            NoSurvivorError: Every candidate failed.
        """
        race = self.scheduler.race
        again = f"Fix the cause, then retry: adaptive-ray run --resume {self._directory.path} --retry-failed"
        if (failed := race.failed_winner) is not None:
            done = f"after {race.spent(failed):,.0f} of {race.budget:,.0f} samples"
            raise WinnerFailedError(f"the winner, batch size {failed}, stopped {done}: {race.reason(failed)}. {again}")
        if race.winner is None:
            reasons = "; ".join(f"batch size {key}: {why}" for key, why in race.failures().items())
            raise NoSurvivorError(f"no candidate survived: {reasons}. {again}")
        return Candidate.parse(str(race.winner))


def _trial_name(trial: Trial) -> str:
    """The name of a trial, and of its directory: a resumed run has other IDs."""
    return f"batch-{trial.config['candidate']}-{trial.trial_id}"


def _swap_settings(config: ExperimentConfig, plan: Plan, race: Race | None = None) -> SwapSettings:
    """Returns a trial's policy within its run, with the rates and throughputs that were measured in ``race``."""
    standings = race.standings() if race is not None else []
    return SwapSettings(
        mode="rotate" if config.explore == "rotate" else "deviation",
        candidates=tuple(plan.candidates),
        patience=config.swap.patience,
        threshold=config.swap.threshold,
        rates={str(s.key): s.log_rate for s in standings if s.log_rate is not None},
        throughputs={str(s.key): s.measured_throughput for s in standings if math.isfinite(s.measured_throughput)},
        turn=plan.turn,
        axis="seconds" if plan.time else "samples",
    )
