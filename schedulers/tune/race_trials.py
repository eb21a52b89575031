"""Keeps Tune's trials in the states that a race series decides on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from ray.tune.experiment import Trial

from schedulers.decision import State
from schedulers.race_series import RaceSeries
from schedulers.tune import trials
from schedulers.tune.ray_compat import TuneController, set_trial_status
from schedulers.tune.trial_config import WinnerConfig

#: See ``LossExtrapolationScheduler``.
ResetConfig = Callable[[Trial, Mapping[str, Any]], bool]


class RaceTrials:
    """A race series with the trial of each candidate. ``settings`` are the arguments of ``RaceSeries``."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        winner_config: Mapping[str, Any] | None,
        time_attr: str,
        reset_config: ResetConfig | None = None,
    ) -> None:
        self._settings, self._time_attr, self._reset_config = settings, time_attr, reset_config
        self.series = RaceSeries(**settings)
        self.configs = WinnerConfig(winner_config)
        self.by_key: dict[Hashable, Trial] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "by_key": {}}  # Tune adds its trials again

    def get_state(self) -> dict[str, Any]:
        """Returns all events, and what does not follow from them."""
        return {"events": list(self.series.events), "configurations": self.configs.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the result of ``get_state``; ``configurations`` may be missing."""
        self.configs.set_state(state.get("configurations", {"own": {}}))
        self.series = RaceSeries(**self._settings)
        for event in state["events"]:
            self.series.take(event)
            self.configs.resolve(self.series)

    def place(self, trial: Trial, key: Hashable) -> None:
        """Sets the status of a trial that Tune is about to add: after a restore Tune would start all of them."""
        state, series = self.series.state(key), self.series
        if state is State.PRUNED:
            trial.set_status(Trial.PAUSED if series.may_rejoin(key) else Trial.TERMINATED)
            trials.note(trial, series.reason(key))
        elif (
            (state is State.WAITING and trials.can_be_resumed(trial))
            or key in series.unforked
            or (key == series.source and series.unforked and self._is_at_the_fork(trial))
        ):
            trial.set_status(Trial.PAUSED)
        else:
            self.prepare(trial, key)

    def place_failed(self, controller: TuneController, trial: Trial, key: Hashable) -> None:
        """Prepares a failed trial that Tune is about to restart, or stops it if it was pruned meanwhile."""
        if self.series.state(key) is not State.PRUNED:
            self.configs.apply(trial, key, self.series)
            trials.restart(trial, self._time_attr, forked=key in self.series.unforked)
            if self.series.state(key) is State.WAITING and trials.can_be_resumed(trial):  # others may need its place
                set_trial_status(controller, trial, Trial.PAUSED)
                controller.search_alg.on_trial_complete(trial.trial_id, result=trial.last_result)
        elif self.series.may_rejoin(key):
            set_trial_status(controller, trial, Trial.PAUSED)
        else:
            failed = key in self.series.failed
            set_trial_status(controller, trial, Trial.ERROR if failed else Trial.TERMINATED)
            controller.search_alg.on_trial_complete(trial.trial_id, error=failed)

    def stop_pruned(self, controller: TuneController, but: Trial | None = None) -> None:
        """Stops or pauses the pruned trials, and continues a winner that waited; ``but`` is handled by the caller."""
        winner = self.by_key.get(self.series.race.winner)
        if winner is not None and winner is not but and winner.status == Trial.RUNNING:
            self._continue_waiting(controller, winner)
        for key, trial in list(self.by_key.items()):
            if trial is but or trial.is_finished() or self.series.state(key) is not State.PRUNED:
                continue
            if not self.series.may_rejoin(key) or trial.status == Trial.PENDING:
                trial.init_local_path()  # Tune reads the directory at the end, even if the trial never started
                controller.stop_trial(trial)
            elif trial.status == Trial.RUNNING:
                trials.pause_pruned(controller, trial)

    def continues(self, winner: Trial, key: Hashable) -> bool:
        """Returns whether the winner, which is running, has taken over the entries of a winner in place."""
        required = self.configs.required(key, self.series)
        if len(self.series.races) > 1:  # its threads are those of a fork, and its workers do not ask for the decision
            return False
        if self._reset_config is None or not self._reset_config(winner, required):
            return False
        self.configs.apply(winner, key, self.series)
        return True

    def keeps_waiting(self, key: Hashable) -> bool:
        """Returns whether a trial that has spent the window keeps its resources, because no other trial needs them."""
        series = self.series
        if self._reset_config is None or series.state(key) is not State.WAITING or len(series.races) > 1:
            return False
        racing = [other for other in series.race.alive if series.state(other) is State.RACING]
        return all(other in self.by_key and self.by_key[other].status == Trial.RUNNING for other in racing)

    @property
    def waiting_in_place(self) -> list[Trial]:
        """The trials that have spent the window and wait for the decision with their resources."""
        if self._reset_config is None:
            return []
        return [
            trial
            for key, trial in self.by_key.items()
            if trial.status == Trial.RUNNING and self.series.state(key) is State.WAITING
        ]

    def pause_waiting(self, controller: TuneController) -> None:
        """Pauses trials that wait in place, so that others can use their resources."""
        for trial in self.waiting_in_place:
            if trials.can_be_resumed(trial):
                # It no longer counts against max_concurrent_trials.
                controller.search_alg.on_trial_complete(trial.trial_id, result=trial.last_result)
                at = trials.weights_at(trial, self._time_attr)
                if trials.pause(controller, trial, trial.last_result, at) == "PAUSE":
                    controller.pause_trial(trial)

    def _continue_waiting(self, controller: TuneController, winner: Trial) -> None:
        """Continues a winner that has spent the window and reports no more until it knows of the decision."""
        series, key = self.series, self.series.race.winner
        if self._reset_config is None or len(series.races) > 1 or self.configs.is_applied(winner, key, series):
            return
        waited = series.race.spent(key) >= series.race.window
        if not self.continues(winner, key) and waited:
            trials.pause(controller, winner, winner.last_result, trials.weights_at(winner, self._time_attr))

    def next_paused(self) -> Trial | None:
        """Returns the next paused trial that may run, ready to start; None if there is none."""
        for key in self.series.race.keys:
            trial = self.by_key.get(key)
            if trial is not None and trial.status == Trial.PAUSED and self._may_continue(key):
                self.prepare(trial, key)
                return trial
        return None

    def prepare(self, trial: Trial, key: Hashable) -> None:
        """Sets the configuration and, for a fork, the weights that a trial starts with."""
        self.configs.apply(trial, key, self.series)
        if key in self.series.unforked:
            trials.fork(trial, self.by_key[self.series.source], self._time_attr)

    def _is_at_the_fork(self, source: Trial) -> bool:
        return trials.weights_at(source, self._time_attr) >= self.series.race.start

    def _may_continue(self, key: Hashable) -> bool:
        """Returns whether a paused trial may run now.

        Forks start before their source continues, because its next checkpoint may replace the one they start from.
        """
        series = self.series
        if series.state(key) is not State.RACING or not series.unforked:
            return series.state(key) in (State.RACING, State.WON)
        source = self.by_key[series.source]
        return (key != series.source) == (source.status == Trial.PAUSED and self._is_at_the_fork(source))
