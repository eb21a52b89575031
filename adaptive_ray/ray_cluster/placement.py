"""Frees what dead trials have reserved, and ends a run whose workers find no place in the cluster, or no memory."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from adaptive_ray.errors import PlacementError
from adaptive_ray.ray_cluster.nodes import no_place
from adaptive_ray.ray_cluster.placement_groups import places, release_orphans
from schedulers.tune.trials import last_error
from trainables.training.host_memory import MemoryTakenError

#: Seconds that workers may wait for their place. Ray Train asks for another one after 60.
_PATIENCE = 45.0
#: Seconds between two looks.
_EVERY = 1


class PlacementWatch(tune.Callback):  # type: ignore[misc]
    """Ends the experiment when workers of this job wait for a place too long, or others hold their memory.

    What a trial had reserved is freed as soon as the trial has died. Such an end is no candidate's failure and prunes
    none: what has been reported is kept, and the run can be resumed.
    """

    def __init__(self) -> None:
        self._looked = 0.0
        self._since: dict[str, float] = {}
        self._taken: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # every session makes its own

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Looks, now and then.

        Raises:
            PlacementError: Workers have waited too long.
        """
        now = time.monotonic()
        if now - self._looked < _EVERY:
            return
        self._looked = now
        release_orphans()
        waiting = {key: group for key, group in places().items() if group["state"] in ("PENDING", "RESCHEDULING")}
        self._since = {key: self._since.get(key, now) for key in waiting}
        for key, since in self._since.items():
            if now - since > _PATIENCE:
                raise PlacementError(no_place(waiting[key]["bundles"].values(), now - since))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Hears that a trial has failed and is to be started again."""
        if isinstance(error := last_error(trial), MemoryTakenError):
            self._taken = f"batch size {trial.config['candidate']}: {error}"

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Ends the experiment before that trial is started; what other hooks raise, Tune does not pass on as it is.

        Raises:
            PlacementError: Other processes hold a run's part of the memory.
        """
        if self._taken is not None:
            raise PlacementError(self._taken)
