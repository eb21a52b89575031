"""What lets a scheduler survive ``Tuner.restore``."""

from __future__ import annotations

from typing import Any, Protocol

from ray import tune


class Stateful(Protocol):
    """Whose state fits into a dictionary."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class RestoreCallback(tune.Callback):  # type: ignore[misc]
    """Saves a scheduler's state with the experiment's: ``Tuner.restore`` restores callbacks, but no scheduler.

    Tune pickles the scheduler and its callbacks together, so the restored callback knows the restored scheduler.
    """

    def __init__(self, scheduler: Stateful) -> None:
        self._scheduler = scheduler

    def get_state(self) -> dict[str, Any]:
        return self._scheduler.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._scheduler.set_state(state)
