"""The race as a Ray Tune scheduler."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.trainable import FunctionTrainable

from schedulers.extrapolation import PREDICTORS
from schedulers.race import Decision, Race, State

#: Answers to Tune.
_CONTINUE, _PAUSE, _STOP, _NOOP = "CONTINUE", "PAUSE", "STOP", "NOOP"


class LossExtrapolationScheduler(FIFOScheduler):  # type: ignore[misc]
    """Runs all trials side by side, extrapolates their losses, and keeps the one that will end best.

    Works with any trainable that reports the metric and how far it has come. Trials whose chance of ending best
    becomes small are stopped at once. A trial that has spent the window is paused, if it can be taken up again, until
    the others have spent theirs; then one trial goes on to the end of the budget.

    With ``winner_config`` the winner is restarted once with these entries changed in its configuration (more workers,
    say), and with ``resume_from`` set to the ``checkpoint_path`` of its last result and a new ``run_tag``: what a
    trainable needs that runs Ray Train, whose run cannot change its size (``ray.tune.integration.ray_train``).

    Args:
        metric: The reported value that is extrapolated; None takes ``TuneConfig``'s.
        mode: ``min`` or ``max``; None takes ``TuneConfig``'s.
        time_attr: The reported number of samples (any unit of training that never falls, also through restarts).
        seconds_attr: The reported seconds of training.
        budget: The whole run; in units of ``time_attr``, or in seconds with ``axis="seconds"``.
        window: What each trial may spend before the winner is chosen, in the same unit.
        axis: ``samples`` or ``seconds``: what is scarce (see ``Race``).
        drop_below: Trials less probable than this to end best are stopped.
        predictor: ``joint``, ``per_curve`` or ``last_value``.
        min_reports: Nobody is stopped before every trial has reported this often.
        winner_config: What changes in the winner's configuration when it goes on; None: it goes on as it is.
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
        drop_below: float = 0.05,
        predictor: str = "joint",
        min_reports: int = 4,
        winner_config: Mapping[str, Any] | None = None,
        candidate_attr: str = "candidate",
    ) -> None:
        super().__init__()
        if predictor not in PREDICTORS:
            raise ValueError(f"predictor {predictor!r} is unknown: use one of {', '.join(PREDICTORS)}")
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode {mode!r} is unknown: use 'min' or 'max'")
        self._metric, self._mode = metric, mode
        self._time_attr, self._seconds_attr, self._candidate_attr = time_attr, seconds_attr, candidate_attr
        self._winner_config = winner_config
        self._promoted = False
        self._trials: dict[Hashable, Trial] = {}
        self.race = Race(
            budget=budget,
            window=window,
            axis=axis,
            drop_below=drop_below,
            forecaster=PREDICTORS[predictor](),
            min_reports=min_reports,
        )
        #: Every decision so far, oldest first.
        self.decisions: list[Decision] = []

    def replay(self, reports: Iterable[tuple[Hashable, float, float, float]]) -> None:
        """Takes up a race where it stood: feeds recorded ``(candidate, samples, metric, seconds)``, oldest first.

        Decisions depend on nothing but the reports, so the race stands where it stood. Its candidates must have been
        entered (``scheduler.race.enter``) in their first order. A winner that is found here is not promoted again.
        """
        for key, samples, value, seconds in reports:
            self.decisions += self.race.report(key, samples, self._loss(value), seconds)
        self._promoted = self.race.winner is not None

    # --- what Tune calls ----------------------------------------------------------------------------------------

    @property
    def metric(self) -> str | None:
        return self._metric

    def set_search_properties(self, metric: str | None, mode: str | None, **_: Any) -> bool:
        if (self._metric and metric) or (self._mode and mode):
            return False
        self._metric, self._mode = self._metric or metric, self._mode or mode
        return self._metric is not None

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        key = self._key(trial)
        self._trials[key] = trial
        self.race.enter(key)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        key = self._key(trial)
        samples, seconds = float(result[self._time_attr]), float(result.get(self._seconds_attr, math.nan))
        self._carry_out(
            tune_controller,
            self.race.report(key, samples, self._loss(result.get(self._metric or "")), seconds),
            but=trial,
        )
        if not self.race.over:
            if self.race.state(key) is State.DROPPED:
                return _STOP
            if self.race.state(key) is State.WAITING and _can_be_taken_up(trial, result):
                return self._pause(tune_controller, trial, result)
            return _CONTINUE
        if key != self.race.winner:
            return _STOP
        spent = samples if self.race.axis == "samples" else seconds
        if spent >= self.race.budget:
            return _STOP
        if self._promoted or self._winner_config is None:
            return _CONTINUE
        self._promote(trial)
        return self._pause(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        self._carry_out(tune_controller, self.race.fail(self._key(trial), failure_reason(trial)), but=trial)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        self._carry_out(tune_controller, self.race.complete(self._key(trial)), but=trial)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        self._carry_out(tune_controller, self.race.fail(self._key(trial), "was removed"), but=trial)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        trials = tune_controller.get_trials()
        for trial in trials:
            if trial.status == Trial.PENDING:
                return trial
        for trial in trials:  # paused: the winner may go on, everybody else waits for the end of the race
            if trial.status == Trial.PAUSED and self._key(trial) == self.race.winner:
                return trial
        return None

    def debug_string(self) -> str:
        alive = ", ".join(str(key) for key in self.race.alive)
        return f"LossExtrapolationScheduler: {alive} of {len(self.race.keys)} candidates left"

    # --- how it is done -----------------------------------------------------------------------------------------

    def _key(self, trial: Trial) -> Hashable:
        key: Hashable = trial.config.get(self._candidate_attr, trial.trial_id)
        return key

    def _loss(self, value: Any) -> float:
        try:
            loss = float(value)
        except (TypeError, ValueError):
            return math.nan
        return -loss if self._mode == "max" else loss

    def _carry_out(self, controller: TuneController, decisions: list[Decision], but: Trial) -> None:
        """Stops the trials that were dropped and promotes a waiting winner; ``but``'s own fate is its caller's."""
        self.decisions += decisions
        for decision in decisions:
            trial = self._trials[decision.key]
            if trial is but:
                continue
            if decision.state is State.DROPPED:
                controller.stop_trial(trial)
            elif decision.state is State.WON and trial.status == Trial.PAUSED and self._winner_config is not None:
                self._promote(trial)  # a winner that still runs is promoted when it reports next

    def _promote(self, trial: Trial) -> None:
        trial.set_config({**trial.config, **(self._winner_config or {})})
        self._promoted = True

    def _pause(self, controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        if "checkpoint_path" not in result:
            return _PAUSE  # Tune saves the trial and restores it
        tag = f"{int(float(result[self._time_attr]))}"  # a Ray Train run that goes on needs a name of its own
        trial.set_config({**trial.config, "resume_from": result["checkpoint_path"], "run_tag": tag})
        controller.pause_trial(trial, should_checkpoint=False)
        return _NOOP


def _can_be_taken_up(trial: Trial, result: dict[str, Any]) -> bool:
    """Whether a paused trial would go on from where it was: from a Train, a Tune or a class trainable's checkpoint."""
    if "checkpoint_path" in result or result.get("checkpoint_dir_name"):
        return True
    return not issubclass(trial.get_trainable_cls(), FunctionTrainable)


def failure_reason(trial: Trial) -> str:
    """The last line of a failed trial's traceback, which names the error."""
    file = trial.error_file
    lines = Path(file).read_text().strip().splitlines() if file and Path(file).exists() else []
    return f"failed: {lines[-1].strip()}" if lines else "failed"
