"""The races as a Ray Tune scheduler."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

from ray.tune.experiment import Trial

from schedulers.decision import Decision, State
from schedulers.events import Report
from schedulers.forecast.deviation import PATIENCE, THRESHOLD
from schedulers.race import MIN_REPORTS, PRUNE_BELOW, Race
from schedulers.race_series import RaceSeries
from schedulers.rerace import Rerace
from schedulers.tune.metrics import Reading
from schedulers.tune.ray_compat import (
    AUTO_RESULT_KEYS,
    DONE,
    TuneController,
    UnbufferedScheduler,
    concurrency_limit,
    reset_failures,
    save_trial,
    set_last_result,
    set_trial_status,
)
from schedulers.tune.restore import RestoreCallback
from schedulers.tune.trial_config import Configurations
from schedulers.tune.trials import (
    RESTARTED,
    can_be_resumed,
    disk_failure,
    failure_reason,
    give_weights,
    is_function,
    may_be_retried,
    note,
    pause,
    put_aside,
    restart,
    weights_at,
)

logger = logging.getLogger(__name__)

#: Answers to Tune.
_CONTINUE, _STOP = "CONTINUE", "STOP"
#: More trials than this are no race.
_MOST = 10_000


class LossExtrapolationScheduler(UnbufferedScheduler):
    """Runs all trials side by side, extrapolates their losses, and keeps the one that will end best.

    Works with any trainable that reports the metric and how far it has come. Trials whose probability of ending best
    becomes small are stopped at once, and their last result says why (``stop_reason``). A trial that has spent the
    window is paused until the others have spent theirs, so that more trials than fit run in turns; then one trial
    continues to the end of the budget.

    A trial can be paused if it is a class with ``save_checkpoint``, or if its results come with a checkpoint: Tune's,
    or the ``checkpoint_path`` of ``ray.tune.integration.ray_train``. Any other keeps its slot and trains on while it
    waits, up to the budget: with more of them than slots the first ones train to their end before the last ones begin.

    With ``winner_config`` the winner is restarted with these entries changed in its configuration (more workers, say).
    A trial that runs Ray Train is restarted with ``resume_from`` set to the ``checkpoint_path`` of its last result and
    a new ``run_tag``.

    With ``rerace`` there are more races on the way: all trials but those that failed fork from the winner's weights of
    that moment (``resume_from``, or Tune's checkpoints), and run for a window again. Until the last race the losers
    are paused, not stopped. All trials must be such as can be paused.

    A failed trial that Tune starts again (``FailureConfig``) stays in the race, and one that runs Ray Train continues
    from its last result's checkpoint. Tune counts failures without progress in between. A trainable that raises
    ``schedulers.tune.trials.NoRetryError`` is not started again. A full or broken disk says nothing about a candidate:
    such an ``OSError`` of a trial ends the experiment, which can be restored.

    To survive ``Tuner.restore``, give ``RunConfig(callbacks=[scheduler.callback])``. A result without the metric is
    ignored, if the metric is given here and not to ``TuneConfig`` (Tune itself then ends the experiment). Where no
    trial has reported the metric and one has spent ``1 / min_reports`` of its window, the experiment ends with a
    ``ValueError`` that lists what was reported. A second ``Tuner.fit()`` with the same scheduler starts from nothing.

    Args:
        metric: The reported value that is extrapolated; None takes ``TuneConfig``'s.
        mode: ``min`` or ``max``; None takes ``TuneConfig``'s.
        time_attr: The reported number of samples (any unit of training that never falls, also through restarts).
        seconds_attr: The reported seconds of training.
        budget: The whole run; in units of ``time_attr``, or in seconds with ``axis="seconds"``.
        window: What each trial may spend before the winner is chosen, in the same unit.
        axis: ``samples`` or ``seconds``: what is scarce (see ``Race``).
        prune_below: Trials less probable than this to end best are stopped.
        predictor: ``joint``, ``per_curve`` or ``last_value``.
        min_reports: Nobody is stopped for its probabilities before every trial has reported this often.
        rerace: ``never``, ``on_deviation`` (the winner does worse than forecast), or ``{"at": [0.1, 0.3]}``, shares of
            the budget.
        rerace_window: The window of the further races; None: the same.
        patience: So many reports in a row make a deviation.
        threshold: How far they must lie above the forecast, in its standard deviations.
        winner_config: What changes in the winner's configuration when it continues; None: nothing. A value
            that can be called is called with the race that was won.
        candidate_attr: The configuration entry that names a trial's candidate; trials without it go by their id.

    Raises:
        ValueError: A number is out of its range, or a name is unknown.
    """

    def __init__(
        self,
        metric: str | None = None,
        mode: str | None = None,
        *,
        time_attr: str = "samples_seen",
        seconds_attr: str = "time_total_s",
        budget: float,
        window: float,
        axis: str = "samples",
        prune_below: float = PRUNE_BELOW,
        predictor: str = "joint",
        min_reports: int = MIN_REPORTS,
        rerace: Rerace = "never",
        rerace_window: float | None = None,
        patience: int = PATIENCE,
        threshold: float = THRESHOLD,
        winner_config: Mapping[str, Any] | None = None,
        candidate_attr: str = "candidate",
    ) -> None:
        super().__init__()
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode {mode!r} is unknown: use 'min' or 'max'")
        self._reading = Reading(metric, mode, time_attr, seconds_attr, axis)
        self._given = metric, mode
        self._candidate_attr = candidate_attr
        self._winner_config = winner_config
        self._configurations = Configurations(winner_config)
        self._settings: dict[str, Any] = {
            "budget": budget, "window": window, "axis": axis, "prune_below": prune_below, "predictor": predictor,
            "min_reports": min_reports, "rerace": rerace, "rerace_window": rerace_window, "patience": patience,
            "threshold": threshold,
        }  # fmt: skip
        #: Everything that is decided; knows nothing of Ray.
        self.series = RaceSeries(**self._settings)
        self._trials: dict[Hashable, Trial] = {}
        #: The last result of every candidate that an earlier ``Tuner`` ran: the trials of a new one know nothing.
        self.last_results: Mapping[Hashable, Mapping[str, Any]] = {}
        self._warned = False

    @property
    def race(self) -> Race:
        """The current race, or the last one."""
        return self.series.race

    @property
    def decisions(self) -> list[Decision]:
        """Every decision so far, oldest first."""
        return self.series.decisions

    @property
    def callback(self) -> RestoreCallback:
        """For ``RunConfig(callbacks=[...])``: with it the scheduler survives ``Tuner.restore``."""
        return RestoreCallback(self)

    def get_state(self) -> dict[str, Any]:
        """Everything that has happened."""
        return {"events": list(self.series.events), "configurations": self._configurations.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores an experiment: ``Tuner.restore`` does, and so may a new ``Tuner`` that is to continue an old one.

        Args:
            state: What ``get_state`` gave. For a new ``Tuner`` the ``events`` are enough, with ``last_results``.
        """
        self._configurations.set_state(state.get("configurations", {"own": {}}))
        self.series = RaceSeries(**self._settings)
        for event in state["events"]:
            self.series.take(event)
            self._configurations.settle(self.series)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trials": {}}  # Tune adds its trials again

    # --- what Tune calls ----------------------------------------------------------------------------------------

    @property
    def metric(self) -> None:
        """None, because Tune ends the whole experiment at a result without its scheduler's metric."""
        return

    def set_search_properties(self, metric: str | None, mode: str | None, **_: Any) -> bool:
        reading = self._reading
        if self._trials:  # a second fit() with this object
            self.series, self._trials, self.last_results, self._warned = RaceSeries(**self._settings), {}, {}, False
            self._configurations = Configurations(self._winner_config)
            reading.metric, reading.mode = self._given
        if (reading.metric and metric) or (reading.mode and mode):
            return False
        reading.metric, reading.mode = reading.metric or metric, reading.mode or mode
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        key = self._key(trial)
        if self._trials.get(key) is trial:
            self._add_again(tune_controller, trial, key)
            return
        self._check(tune_controller, trial, key)
        self._trials[key] = trial
        if key in self.last_results and not trial.has_reported_at_least_once:
            set_last_result(trial, self.last_results[key])
        self._configurations.remember(key, trial)
        self.series.expect(tune_controller.search_alg.total_samples)
        self.series.enter(key)
        if trial.status == Trial.PENDING and key in self.series.failed:
            self.series.retry([key])  # Tuner.restore was asked to
        if trial.status == Trial.PENDING:
            self._place(trial, key)
            if trial.status != Trial.PENDING:  # it does not count against max_concurrent_trials
                tune_controller.search_alg.on_trial_complete(trial.trial_id)
        elif self.series.state(key) in (State.RACING, State.WAITING):
            self.series.complete(key)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        key = self._key(trial)
        before = self._reached(key)
        cause = result.get(RESTARTED)
        if cause and not result.get(DONE):  # when a function has returned, Tune passes its last result once more
            self.series.restart(key, before, str(cause))
        self._take(key, trial, result)
        if self._reached(key) > before:
            reset_failures(trial)  # Tune's limit is on failures without progress in between
        self._stop_losers(tune_controller, but=trial)
        state, samples = self.series.state(key), self._reading.samples(result)
        if state is State.PRUNED:
            return put_aside(tune_controller, trial) if self.series.comes_back(key) else _STOP
        if self._reading.spent(result) >= self.race.budget:
            return _STOP
        forks = key == self.series.source and bool(self.series.unforked) and samples >= self.race.start
        restarts = state is State.WON and not self._configurations.fits(trial, key, self.series)
        if not (state is State.WAITING or forks or restarts) or not can_be_resumed(trial, result):
            return _CONTINUE
        if state is State.WAITING:  # it no longer counts against max_concurrent_trials: others may begin
            tune_controller.search_alg.on_trial_complete(trial.trial_id, result=result)
        return pause(tune_controller, trial, result, samples)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        if (error := disk_failure(trial)) is not None:
            raise error
        key = self._key(trial)
        if trial.status == Trial.ERROR and may_be_retried(trial):  # Tune starts it again
            self.series.restart(key, self._reached(key), failure_reason(trial))
            return
        self.series.fail(key, failure_reason(trial))
        note(trial, self.series.reason(key))
        self._stop_losers(tune_controller, but=trial)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        key = self._key(trial)
        if self.series.state(key) is State.PRUNED:
            note(trial, self.series.reason(key))
            self.series.complete(key)
            return
        if self._reading.metric in result:
            self._take(key, trial, result)
        elif not self._has_reports:
            self.series.fail(key, self._reading.missing(result, AUTO_RESULT_KEYS))
            note(trial, self.series.reason(key))
            self._stop_losers(tune_controller, but=trial)
            return
        if self._reading.spent(result) >= self.race.budget:
            note(trial, f"has spent the budget of {self.race.budget:,.0f} {self.race.axis}")
        self.series.complete(key)
        self._stop_losers(tune_controller, but=trial)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        key = self._key(trial)
        was_pruned = self.series.state(key) is State.PRUNED
        self.series.fail(key, "was removed")
        note(trial, self.series.reason(key))
        save_trial(tune_controller, trial)
        if not was_pruned:
            self._stop_losers(tune_controller, but=trial)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        trials = tune_controller.get_trials()
        if tune_controller.search_alg.is_finished() and self.series.expect(len(trials)):
            self._stop_losers(tune_controller)
        taken = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in trials)
        if taken < concurrency_limit(tune_controller.search_alg):
            for key in self.race.keys:
                trial = self._trials.get(key)
                if trial is not None and trial.status == Trial.PAUSED and self._may_continue(key):
                    self._equip(trial, key)
                    return trial
        return next((trial for trial in trials if trial.status == Trial.PENDING), None)

    def debug_string(self) -> str:
        race, number = self.race, len(self.series.races)
        standing = f"won by {race.winner}" if race.winner is not None else f"{len(race.alive)} of {len(race.keys)} left"
        return f"LossExtrapolationScheduler: race {number}, {standing}"

    # --- how it is done -----------------------------------------------------------------------------------------

    def _key(self, trial: Trial) -> Hashable:
        key: Hashable = trial.config.get(self._candidate_attr, trial.trial_id)
        return key

    def _check(self, controller: TuneController, trial: Trial, key: Hashable) -> None:
        """What can be told before a trial starts.

        Raises:
            ValueError: The experiment cannot be run with this scheduler.
        """
        if self._reading.metric is None:
            raise ValueError("no metric to compare trials by: give it to LossExtrapolationScheduler or to TuneConfig")
        if (total := controller.search_alg.total_samples) > _MOST:
            raise ValueError(
                f"a race of {total:,} trials never ends: give TuneConfig(num_samples=...) a smaller number"
            )
        other = self._trials.get(key)
        if other is not None and other.trial_id != trial.trial_id and not other.is_finished():
            raise ValueError(
                f"two trials have {self._candidate_attr} {key!r} in their configuration: each needs its own, or none"
            )
        if self.series.may_race_again and not is_function(trial) and not can_be_resumed(trial):
            raise ValueError(f"rerace needs trials that can be paused: {trial.trainable_name} has no save_checkpoint")
        if trial.has_reported_at_least_once and key not in self.series.races[0].keys:
            logger.warning("the race starts again: to restore it, use RunConfig(callbacks=[scheduler.callback])")

    def _add_again(self, controller: TuneController, trial: Trial, key: Hashable) -> None:
        """Prepares a trial that has failed and that Tune is about to start again, or ends it after all."""
        if self.series.state(key) is not State.PRUNED:
            self._configurations.put_on(trial, key, self.series)
            restart(trial, self._reading.time_attr, forked=key in self.series.unforked)
        elif self.series.comes_back(key):
            set_trial_status(controller, trial, Trial.PAUSED)
        else:
            failed = key in self.series.failed
            set_trial_status(controller, trial, Trial.ERROR if failed else Trial.TERMINATED)
            controller.search_alg.on_trial_complete(trial.trial_id, error=failed)

    def _reached(self, key: Hashable) -> float:
        """Samples up to a candidate's last report that counted."""
        return max((max(race.curve(key)[0], default=0.0) for race in self.series.races if key in race.keys), default=0)

    def _place(self, trial: Trial, key: Hashable) -> None:
        """Where a trial belongs that Tune is about to add: after a restore Tune would start them all."""
        state, series = self.series.state(key), self.series
        if state is State.PRUNED:
            trial.set_status(Trial.PAUSED if self.series.comes_back(key) else Trial.TERMINATED)
            note(trial, series.reason(key))
        elif (
            (state is State.WAITING and can_be_resumed(trial))
            or key in series.unforked
            or (key == series.source and series.unforked and self._is_at_the_fork(trial))
        ):
            trial.set_status(Trial.PAUSED)
        else:
            self._equip(trial, key)

    def _take(self, key: Hashable, trial: Trial, result: Mapping[str, Any]) -> None:
        """Passes a result on to the series."""
        series, reading = self.series, self._reading
        if reading.metric not in result:
            if not self._warned:
                self._warned = True
                logger.warning(f"trial {key} has reported without {reading.metric!r}: such results are ignored")
            race = series.race
            spent = reading.spent(result) - race.spent(key)
            many = race.min_reports
            if not self._has_reports and result["training_iteration"] >= many and not spent < race.window / many:
                raise ValueError(reading.missing(result, AUTO_RESULT_KEYS))
            if series.state(key) is State.RACING and spent >= race.window:
                series.fail(key, f"has spent its window without reporting {reading.metric!r}")
        elif complaint := reading.complaint(result):
            logger.error(f"trial {key} {complaint}")
            series.fail(key, complaint)
        elif series.may_race_again and not can_be_resumed(trial, result):
            raise ValueError(
                f"rerace needs trials that can be paused: {trial.trainable_name} has reported without a checkpoint; "
                "report one with every result, or use rerace='never'"
            )
        else:
            series.report(key, *reading.report(result))

    @property
    def _has_reports(self) -> bool:
        return any(isinstance(event, Report) for event in self.series.events)

    def _stop_losers(self, controller: TuneController, but: Trial | None = None) -> None:
        """Stops or pauses whoever is out, except ``but``, which the caller handles."""
        for key, trial in list(self._trials.items()):
            if trial is but or trial.is_finished() or self.series.state(key) is not State.PRUNED:
                continue
            if not self.series.comes_back(key) or trial.status == Trial.PENDING:
                controller.stop_trial(trial)
            elif trial.status == Trial.RUNNING:
                put_aside(controller, trial)

    def _is_at_the_fork(self, source: Trial) -> bool:
        return weights_at(source, self._reading.time_attr) >= self.race.start

    def _may_continue(self, key: Hashable) -> bool:
        """Whether a paused trial may run now. Forks begin first, for the source's next checkpoints may replace its
        last one; all have begun once they have reported."""
        series = self.series
        if series.state(key) is not State.RACING or not series.unforked:
            return series.state(key) in (State.RACING, State.WON)
        source = self._trials[series.source]
        return (key != series.source) == (source.status == Trial.PAUSED and self._is_at_the_fork(source))

    def _equip(self, trial: Trial, key: Hashable) -> None:
        """Gives a trial what it is to start with: its configuration, and in a further race the source's weights."""
        self._configurations.put_on(trial, key, self.series)
        if key in self.series.unforked:
            give_weights(trial, self._trials[self.series.source], self._reading.time_attr)
