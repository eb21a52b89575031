"""The configuration of trials: changed for the winner, and restored for another race."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from ray.tune.experiment import Trial

from schedulers.decision import State
from schedulers.race_series import RaceSeries


class WinnerConfig:
    """Replaces entries of the winner's configuration, and restores them for another race.

    Args:
        entries: The winner's entries. A callable is called once, with the race that was won.
    """

    def __init__(self, entries: Mapping[str, Any] | None) -> None:
        self._entries = dict(entries or {})
        self._original: dict[Hashable, dict[str, Any]] = {}
        self._resolved: dict[int, dict[str, Any]] = {}  # by the number of the race

    def remember(self, key: Hashable, trial: Trial) -> None:
        """Stores the original entries of a trial that is seen for the first time."""
        self._original.setdefault(key, {name: value for name, value in trial.config.items() if name in self._entries})

    def is_applied(self, trial: Trial, key: Hashable, series: RaceSeries) -> bool:
        """Returns whether a trial has the entries that its state requires."""
        current = {name: value for name, value in trial.config.items() if name in self._entries}
        return current == self.required(key, series)

    def apply(self, trial: Trial, key: Hashable, series: RaceSeries) -> None:
        """Sets the entries that the state of a trial requires, for its next start."""
        if not self.is_applied(trial, key, series):
            rest = {name: value for name, value in trial.config.items() if name not in self._entries}
            trial.set_config({**rest, **self.required(key, series)})

    def resolve(self, series: RaceSeries) -> None:
        """Calls the callable entries once the current race has a winner: its forecasts change as it continues."""
        number = len(series.races)
        if not series.race.over:
            self._resolved.pop(number, None)
        elif series.race.winner is not None and number not in self._resolved:
            self._resolved[number] = {
                name: value(series.race) if callable(value) else value for name, value in self._entries.items()
            }

    def get_state(self) -> dict[str, Any]:
        """Returns the state that does not follow from the events."""
        return {"own": dict(self._original)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the result of ``get_state``. ``resolve`` must then be called after every event."""
        self._original, self._resolved = dict(state["own"]), {}

    def required(self, key: Hashable, series: RaceSeries) -> dict[str, Any]:
        """Returns the entries that the state of a trial requires."""
        if series.state(key) is not State.WON:
            return self._original[key]
        self.resolve(series)
        return self._resolved[len(series.races)]
