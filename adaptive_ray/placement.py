"""Workers that Ray cannot place: Ray itself waits for a place for ever."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import ray
from ray import tune
from ray.util import placement_group_table

from adaptive_ray.errors import PlacementError
from adaptive_ray.nodes import described, free_devices

#: Seconds that workers may wait for their place. Ray Train asks for another one after 60.
_PATIENCE = 45
#: Seconds between two looks.
_EVERY = 2
#: A placement group's id ends in its job's.
_JOB_DIGITS = 8


class PlacementWatch(tune.Callback):  # type: ignore[misc]
    """Ends the experiment when workers of this job wait for a place in the cluster too long.

    That is nobody's failure and drops no candidate: what has been reported stays, and the run can be resumed.
    """

    def __init__(self) -> None:
        self._looked = 0.0
        self._since: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # made anew for every session

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Looks, now and then.

        Raises:
            PlacementError: Workers have waited too long.
        """
        now = time.monotonic()
        if now - self._looked < _EVERY:
            return
        self._looked = now
        waiting = _waiting()
        self._since = {key: self._since.get(key, now) for key in waiting}
        for key, since in self._since.items():
            if now - since > _PATIENCE:
                raise PlacementError(_complaint(list(waiting[key]["bundles"].values()), now - since))


def _waiting() -> dict[str, dict[str, Any]]:
    """This job's placement groups, by their ids, that have no place."""
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table().items()
    return {
        key: group
        for key, group in groups
        if key[-_JOB_DIGITS:] == job and group["state"] in ("PENDING", "RESCHEDULING")
    }


def _complaint(bundles: list[dict[str, float]], seconds: float) -> str:
    wanted = Counter(", ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items())) for bundle in bundles)
    parts = "; ".join(f"{count} x ({resources})" for resources, count in wanted.items())
    return f"no place for {parts} in {seconds:.0f} seconds; free are: {described(free_devices().values())}"
