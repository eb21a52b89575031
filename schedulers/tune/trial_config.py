"""What a trial's configuration is to be: its own in a race, and changed when it has won."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from ray.tune.experiment import Trial

from schedulers.decision import State
from schedulers.race_series import RaceSeries


class Configurations:
    """Changes the winner's configuration, and back for another race.

    Args:
        winner: The entries that a winner gets in place of its own. A value that can be called is called with the race
            that was won, once: the race's forecasts change as its winner continues.
    """

    def __init__(self, winner: Mapping[str, Any] | None) -> None:
        self._winner = dict(winner or {})
        self._own: dict[Hashable, dict[str, Any]] = {}
        self._won: dict[int, dict[str, Any]] = {}  # by the number of the race

    def remember(self, key: Hashable, trial: Trial) -> None:
        """Keeps a trial's own entries as it was first seen with them."""
        self._own.setdefault(key, {name: value for name, value in trial.config.items() if name in self._winner})

    def fits(self, trial: Trial, key: Hashable, series: RaceSeries) -> bool:
        """Whether a trial has what it is to have as things stand."""
        has = {name: value for name, value in trial.config.items() if name in self._winner}
        return has == self._wanted(key, series)

    def put_on(self, trial: Trial, key: Hashable, series: RaceSeries) -> None:
        """Gives a trial that does not run what it is to have as things stand."""
        if not self.fits(trial, key, series):
            rest = {name: value for name, value in trial.config.items() if name not in self._winner}
            trial.set_config({**rest, **self._wanted(key, series)})

    def settle(self, series: RaceSeries) -> None:
        """Works out what the winner of the current race gets, as soon as there is one."""
        number = len(series.races)
        if not series.race.over:
            self._won.pop(number, None)
        elif series.race.winner is not None and number not in self._won:
            self._won[number] = {
                name: value(series.race) if callable(value) else value for name, value in self._winner.items()
            }

    def get_state(self) -> dict[str, Any]:
        """What does not follow from the events."""
        return {"own": dict(self._own)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what ``get_state`` gave; the rest follows by ``settle`` after every event."""
        self._own, self._won = dict(state["own"]), {}

    def _wanted(self, key: Hashable, series: RaceSeries) -> dict[str, Any]:
        if series.state(key) is not State.WON:
            return self._own[key]
        self.settle(series)
        return self._won[len(series.races)]
