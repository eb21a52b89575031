"""Stops a run whose workers cannot be placed, and releases resources of dead trials."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from adaptive_ray.errors import PlacementError
from adaptive_ray.ray_cluster.nodes import no_place
from adaptive_ray.ray_cluster.placement_groups import places, release_orphans
from schedulers.tune.trials import last_error
from trainables.training.host_memory import MemoryTakenError

#: Timeout in seconds for pending placement groups. Ray Train requests a new one after 60.
_TIMEOUT = 45.0
#: Seconds between two checks.
_EVERY = 1


class PlacementWatch(tune.Callback):  # type: ignore[misc]
    """Stops the experiment if workers stay pending too long or their memory is used by other processes.

    Also releases the placement groups of dead trials. No candidate is pruned, and the run can be resumed.
    """

    def __init__(self) -> None:
        self._looked = 0.0
        self._since: dict[str, float] = {}
        self._taken: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks; each session creates its own

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Checks placement groups once a second. Raises ``PlacementError`` if they were pending too long."""
        now = time.monotonic()
        if now - self._looked < _EVERY:
            return
        self._looked = now
        release_orphans()
        waiting = {key: group for key, group in places().items() if group["state"] in ("PENDING", "RESCHEDULING")}
        self._since = {key: self._since.get(key, now) for key in waiting}
        for key, since in self._since.items():
            if now - since > _TIMEOUT:
                raise PlacementError(no_place(waiting[key]["bundles"].values(), now - since))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Records a failure that was caused by lack of memory."""
        if isinstance(error := last_error(trial), MemoryTakenError):
            self._taken = f"batch size {trial.config['candidate']}: {error}"

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Raises ``PlacementError`` before the trial restarts. Only this hook may: Tune wraps errors of others."""
        if self._taken is not None:
            raise PlacementError(self._taken)
