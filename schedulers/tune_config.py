"""What a trial's configuration is to be: its own in a race, and changed when it has won."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from ray.tune.experiment import Trial

from schedulers.contest import Contest
from schedulers.decision import State


class Configurations:
    """Changes the winner's configuration, and back for another race.

    Args:
        winner: The entries that a winner gets in place of its own. A value that can be called is called with the race
            that was won, once: the race's forecasts change as its winner goes on.
    """

    def __init__(self, winner: Mapping[str, Any] | None) -> None:
        self._winner = dict(winner or {})
        self._own: dict[Hashable, dict[str, Any]] = {}
        self._won: dict[int, dict[str, Any]] = {}  # by the number of the race

    def remember(self, key: Hashable, trial: Trial) -> None:
        """Keeps a trial's own entries as it was first seen with them."""
        self._own.setdefault(key, {name: value for name, value in trial.config.items() if name in self._winner})

    def fits(self, trial: Trial, key: Hashable, contest: Contest) -> bool:
        """Whether a trial has what it is to have as things stand."""
        has = {name: value for name, value in trial.config.items() if name in self._winner}
        return has == self._wanted(key, contest)

    def put_on(self, trial: Trial, key: Hashable, contest: Contest) -> None:
        """Gives a trial that does not run what it is to have as things stand."""
        if not self.fits(trial, key, contest):
            rest = {name: value for name, value in trial.config.items() if name not in self._winner}
            trial.set_config({**rest, **self._wanted(key, contest)})

    def get_state(self) -> dict[str, Any]:
        """What cannot be known from what has happened."""
        return {"own": dict(self._own), "won": dict(self._won)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``get_state`` gave."""
        self._own, self._won = dict(state["own"]), dict(state["won"])

    def _wanted(self, key: Hashable, contest: Contest) -> dict[str, Any]:
        if contest.state(key) is not State.WON:
            return self._own[key]
        number = len(contest.races)
        if number not in self._won:
            self._won[number] = {
                name: value(contest.race) if callable(value) else value for name, value in self._winner.items()
            }
        return self._won[number]
