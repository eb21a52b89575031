"""A Ray Tune scheduler that runs a series of races."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

from ray.tune.experiment import Trial

from schedulers.decision import Decision, State
from schedulers.forecast.deviation import PATIENCE, THRESHOLD
from schedulers.race import MIN_REPORTS, PRUNE_BELOW, Race, Rule
from schedulers.race_series import RaceSeries
from schedulers.rerace import Rerace
from schedulers.tune import ray_compat, trials
from schedulers.tune.metrics import ResultReader
from schedulers.tune.race_trials import RaceTrials, ResetConfig
from schedulers.tune.ray_compat import TuneController
from schedulers.tune.restore import RestoreCallback

logger = logging.getLogger(__name__)

#: Actions for Tune.
_CONTINUE, _STOP = "CONTINUE", "STOP"
#: Upper limit of trials; num_samples=-1 means infinitely many.
_MAX_TRIALS = 10_000


class LossExtrapolationScheduler(ray_compat.UnbufferedScheduler):
    """Trains all trials for a window of the budget, compares their losses or forecasts, and continues the best one.

    Works with any trainable that reports a metric and the samples seen. The worse trials are stopped early (``rule``);
    ``stop_reason`` in their last result says why. A trial that has spent the window is paused until the
    others have, so that more trials than fit run in turns. Then the winner continues to the end of the budget.

    A trial can be paused if it is a class with ``save_checkpoint``, or if its results have a checkpoint: Tune's, or the
    ``checkpoint_path`` of ``ray.tune.integration.ray_train``. Other trials keep their resources and train on while
    they wait. A trial that runs Ray Train resumes with ``resume_from`` set to the ``checkpoint_path`` of its last
    result and a new ``run_tag``.

    A trial that Tune retries (``FailureConfig``) stays in the race; failures with progress in between are not counted
    against ``max_failures``. A trainable that raises ``schedulers.tune.trials.NoRetryError`` is not retried. A full or
    broken disk does not depend on the candidate: such an ``OSError`` ends the experiment, which can be restored.

    To support ``Tuner.restore``, pass ``RunConfig(callbacks=[scheduler.callback])``. Results without the metric are
    ignored if the metric is given here instead of to ``TuneConfig``. If a trial has spent ``1 / min_reports`` of its
    window and none has reported the metric, the experiment ends with a ``ValueError`` that lists the reported names.
    Each ``Tuner.fit()`` starts a new race.

    Args:
        metric: The reported value that is compared; None: that of ``TuneConfig``.
        mode: ``min`` or ``max``; None: that of ``TuneConfig``.
        time_attr: The reported number of samples seen, or any measure of training that never decreases.
        seconds_attr: The reported seconds of training.
        throughput_attr: The reported throughput in units of ``time_attr`` per second, measured while the trial had its
            device to itself. Trials need not report it; the first value that a trial reports is used.
        learning_rate_attr: The reported learning rate. Without it, the rate is assumed to decay to zero at the end of
            the budget.
        budget: Length of the whole run in units of ``time_attr``, or in seconds with ``axis="seconds"``.
        window: Part of the budget that each trial may spend before the winner is chosen.
        axis: Unit of the budget: ``samples`` or ``seconds``. See ``Race``.
        rule: ``halving`` compares losses after equal parts of the budget, ``forecast`` forecasts of the final losses.
        prune_below: Trials below this probability of finishing best are stopped (``forecast``); 0: no trial is stopped
            before the window is spent.
        tolerance: Trials are equal if their losses (or forecasts) differ by at most this fraction of the decrease in
            loss; the fastest of them wins, if all have reported ``throughput_attr``. See ``Race``.
        forecaster: ``joint``, ``per_curve`` or ``last_value``.
        averaged: Whether the metric is that of averaged weights (such as an EMA): a low learning rate slows their
            progress, while it reduces the loss of raw weights.
        min_reports: No trial is stopped by a forecast before every trial has reported this often.
        rerace: When further races start, in which the other trials fork from the winner's weights: ``never``,
            ``on_deviation`` (the winner underperforms), or ``{"at": [0.1, 0.3]}``, fractions of the budget. Until the
            last race, pruned trials are paused instead of stopped; all trials must support pausing.
        rerace_window: Window of further races; None: the same.
        patience: Number of consecutive losses above the forecast that make the winner underperform.
        threshold: How far they must lie above it, in standard deviations of the forecast.
        winner_config: Entries of the winner's configuration to replace when it continues (such as the number of
            workers). A callable is called with the race that was won.
        reset_config: Called with the winner's trial and these entries while it runs; returns whether it continues with
            them in place, like ``Trainable.reset_config``. Otherwise it is restarted. With it, a trial that has spent
            the window keeps running, if no other trial needs its resources: it must wait for the decision itself.
        candidate_attr: The configuration entry that names a trial's candidate; by default the trial's id is used.

    Raises:
        ValueError: A number is out of range, or a name is unknown.
    """

    def __init__(
        self,
        metric: str | None = None,
        mode: str | None = None,
        *,
        time_attr: str = "samples_seen",
        seconds_attr: str = "time_total_s",
        throughput_attr: str = "throughput_alone",
        learning_rate_attr: str = "learning_rate",
        budget: float,
        window: float,
        axis: str = "samples",
        rule: Rule = "halving",
        prune_below: float = PRUNE_BELOW,
        tolerance: float | None = None,
        forecaster: str = "joint",
        averaged: bool = False,
        min_reports: int = MIN_REPORTS,
        rerace: Rerace = "never",
        rerace_window: float | None = None,
        patience: int = PATIENCE,
        threshold: float = THRESHOLD,
        winner_config: Mapping[str, Any] | None = None,
        reset_config: ResetConfig | None = None,
        candidate_attr: str = "candidate",
    ) -> None:
        super().__init__()
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode {mode!r} is unknown: use 'min' or 'max'")
        self._reader_settings = (metric, mode, time_attr, seconds_attr, throughput_attr, learning_rate_attr, axis)
        self._candidate_attr = candidate_attr
        self._winner_config, self._reset_config = winner_config, reset_config
        self._settings: dict[str, Any] = {
            "budget": budget, "window": window, "axis": axis, "rule": rule, "prune_below": prune_below,
            "tolerance": tolerance, "forecaster": forecaster, "averaged": averaged, "min_reports": min_reports,
            "rerace": rerace, "rerace_window": rerace_window, "patience": patience, "threshold": threshold,
        }  # fmt: skip
        self._reset()

    def _reset(self) -> None:
        #: The last result of every candidate of an earlier ``Tuner``, for the trials of a new one.
        self.last_results: Mapping[Hashable, Mapping[str, Any]] = {}
        self._pause_waiting = False
        self._reader = ResultReader(*self._reader_settings)
        self._trials = RaceTrials(self._settings, self._winner_config, self._reader.time_attr, self._reset_config)

    @property
    def series(self) -> RaceSeries:
        """Makes all decisions, independently of Ray."""
        return self._trials.series

    @property
    def race(self) -> Race:
        """The current race, or the last one."""
        return self.series.race

    @property
    def decisions(self) -> list[Decision]:
        """All decisions, oldest first."""
        return self.series.decisions

    @property
    def callback(self) -> RestoreCallback:
        """Pass it to ``RunConfig(callbacks=[...])`` to support ``Tuner.restore``."""
        return RestoreCallback(self)

    @property
    def trials_wait_in_place(self) -> bool:
        """Whether trials that have spent the window keep their resources while they wait (see ``reset_config``)."""
        return bool(self._trials.waiting_in_place)

    def pause_waiting(self) -> None:
        """Pauses these trials at Tune's next step, because other trials need the resources."""
        self._pause_waiting = True

    def get_state(self) -> dict[str, Any]:
        """Returns the state of the experiment."""
        return self._trials.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores an experiment, for ``Tuner.restore`` or for a new ``Tuner`` that continues an old one.

        Args:
            state: The result of ``get_state``. For a new ``Tuner``, ``events`` and ``last_results`` suffice.
        """
        self._trials.set_state(state)

    # --- called by Tune -----------------------------------------------------------------------------------------

    @property
    def metric(self) -> None:
        """None: Tune would end the experiment at a result without its scheduler's metric."""
        return

    def set_search_properties(self, metric: str | None, mode: str | None, **_: Any) -> bool:
        if self._trials.by_key:  # a second fit() with this object
            self._reset()
        reader = self._reader
        if (reader.metric and metric) or (reader.mode and mode):
            return False
        reader.metric, reader.mode = reader.metric or metric, reader.mode or mode
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        key, search = self._key(trial), tune_controller.search_alg
        if self._trials.by_key.get(key) is trial:
            self._trials.place_failed(tune_controller, trial, key)
            return
        self._check(trial, key, search.total_samples)
        self._trials.by_key[key] = trial
        if key in self.last_results and not trial.has_reported_at_least_once:
            ray_compat.set_last_result(trial, self.last_results[key])
        self._trials.configs.remember(key, trial)
        self.series.expect(search.total_samples)
        self.series.enter(key)
        if trial.status == Trial.PENDING and key in self.series.failed:
            self.series.retry([key])  # requested by Tuner.restore
        if trial.status == Trial.PENDING:
            self._trials.place(trial, key)
            if trial.status != Trial.PENDING:  # it must not count against max_concurrent_trials
                search.on_trial_complete(trial.trial_id)
        elif self.series.state(key) in (State.RACING, State.WAITING):
            self.series.complete(key)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        key, series = self._key(trial), self.series
        before = self._reached(key)
        cause = result.get(trials.RESTARTED)
        if cause and not result.get(ray_compat.DONE):  # Tune repeats the last result of a function that has returned
            series.restart(key, before, str(cause))
        self._reader.take(series, key, trial, result)
        if self._reached(key) > before:
            ray_compat.reset_failures(trial)  # Tune's limit is for failures without progress in between
        self._trials.stop_pruned(tune_controller, but=trial)
        state, samples = series.state(key), self._reader.samples(result)
        if state is State.PRUNED:
            return trials.pause_pruned(tune_controller, trial) if series.may_rejoin(key) else _STOP
        if self._spent(key, result) >= self.race.budget:
            return _STOP
        forks = key == series.source and bool(series.unforked) and samples >= self.race.start
        restarts = state is State.WON and not self._trials.configs.is_applied(trial, key, series)
        if not (state is State.WAITING or forks or restarts) or not trials.can_be_resumed(trial, result):
            return _CONTINUE
        if (restarts and not forks and self._trials.continues(trial, key)) or self._trials.keeps_waiting(key):
            return _CONTINUE
        if state is State.WAITING:  # it no longer counts against max_concurrent_trials
            tune_controller.search_alg.on_trial_complete(trial.trial_id, result=result)
        return trials.pause(tune_controller, trial, result, samples)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        if (error := trials.disk_failure(trial)) is not None:
            raise error
        key, reason = self._key(trial), trials.failure_reason(trial)
        if trial.status == Trial.ERROR and trials.may_be_retried(trial):  # Tune restarts it
            self.series.restart(key, self._reached(key), reason)
        else:
            self._fail(trial, reason)
            self._trials.stop_pruned(tune_controller, but=trial)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        key = self._key(trial)
        if self.series.state(key) is State.PRUNED:
            trials.note(trial, self.series.reason(key))
            self.series.complete(key)
            return
        if self._reader.metric in result:
            self._reader.take(self.series, key, trial, result)
        elif self._reader.is_missing(self.series, result):
            self._fail(trial, self._reader.missing(result))
            self._trials.stop_pruned(tune_controller, but=trial)
            return
        if self._spent(key, result) >= self.race.budget:
            trials.note(trial, f"budget of {self.race.budget:,.0f} {self.race.axis} spent")
        self.series.complete(key)
        self._trials.stop_pruned(tune_controller, but=trial)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        was_pruned = self.series.state(self._key(trial)) is State.PRUNED
        self._fail(trial, "removed")
        ray_compat.save_trial(tune_controller, trial)
        if not was_pruned:
            self._trials.stop_pruned(tune_controller, but=trial)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        everything = tune_controller.get_trials()
        if tune_controller.search_alg.is_finished() and self.series.expect(len(everything)):
            self._trials.stop_pruned(tune_controller)
        if self._pause_waiting:
            self._pause_waiting = False
            self._trials.pause_waiting(tune_controller)
        taken = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in everything)
        free = taken < ray_compat.concurrency_limit(tune_controller.search_alg)
        if free and (paused := self._trials.next_paused()) is not None:
            return paused
        return next((trial for trial in everything if trial.status == Trial.PENDING), None)

    def debug_string(self) -> str:
        race, number = self.race, len(self.series.races)
        state = f"won by {race.winner}" if race.winner is not None else f"{len(race.alive)} of {len(race.keys)} left"
        return f"LossExtrapolationScheduler: race {number}, {state}"

    # --- helpers ------------------------------------------------------------------------------------------------

    def _key(self, trial: Trial) -> Hashable:
        key: Hashable = trial.config.get(self._candidate_attr, trial.trial_id)
        return key

    def _spent(self, key: Hashable, result: Mapping[str, Any]) -> float:
        """Returns the part of the budget that a trial has spent; in seconds, by the measured throughput if known."""
        if self.race.axis == "seconds" and key in self.series.throughputs and key in self.race.keys:
            return self.race.spent(key, self._reader.samples(result))
        return self._reader.spent(result)

    def _fail(self, trial: Trial, reason: str) -> None:
        key = self._key(trial)
        self.series.fail(key, reason)
        trials.note(trial, self.series.reason(key))

    def _check(self, trial: Trial, key: Hashable, count: int) -> None:
        """Raises ValueError if the experiment cannot be run with this scheduler."""
        if self._reader.metric is None:
            raise ValueError("no metric to compare trials by: pass it to LossExtrapolationScheduler or to TuneConfig")
        if count > _MAX_TRIALS:
            raise ValueError(f"a race of {count:,} trials never ends: reduce TuneConfig(num_samples=...)")
        other = self._trials.by_key.get(key)
        if other is not None and other.trial_id != trial.trial_id and not other.is_finished():
            raise ValueError(f"two trials have {self._candidate_attr} {key!r} in their configuration: make it unique")
        if self.series.may_race_again and not trials.is_function(trial) and not trials.can_be_resumed(trial):
            raise ValueError(f"rerace needs trials that can be paused: {trial.trainable_name} has no save_checkpoint")
        if trial.has_reported_at_least_once and key not in self.series.races[0].keys:
            logger.warning("the race starts again: to restore it, pass RunConfig(callbacks=[scheduler.callback])")

    def _reached(self, key: Hashable) -> float:
        """Returns the samples at a candidate's last accepted report."""
        return max((max(race.curve(key)[0], default=0.0) for race in self.series.races if key in race.keys), default=0)
