"""The callback with which ``Tuner.restore`` restores the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import tune

if TYPE_CHECKING:
    from schedulers.tune.scheduler import LossExtrapolationScheduler


class RestoreCallback(tune.Callback):  # type: ignore[misc]
    """Saves a scheduler's state with the experiment: ``Tuner.restore`` restores callbacks but not schedulers.

    Tune pickles the scheduler and its callbacks together, so the restored callback refers to the restored scheduler.
    """

    def __init__(self, scheduler: LossExtrapolationScheduler) -> None:
        self._scheduler = scheduler

    def get_state(self) -> dict[str, Any]:
        return self._scheduler.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._scheduler.set_state(state)
