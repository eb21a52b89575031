"""The places in a cluster that this process's job has reserved, or waits for: Ray's placement groups."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from adaptive_ray.ray_cluster.ray_compat import orphaned_placement_groups

#: A placement group's id ends in its job's.
_JOB_DIGITS = 8
#: Seconds in which all is given back.
_PATIENCE = 8


def places() -> dict[str, dict[str, Any]]:
    """This job's placement groups, by their ids."""
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table().items()
    return {key: group for key, group in groups if key[-_JOB_DIGITS:] == job and group["state"] != "REMOVED"}


def release_orphans() -> None:
    """Removes this job's groups whose creator has died: Ray keeps them reserved until the job ends.

    The creator is a Ray Train run's controller, which is killed with its trial.
    """
    for group in orphaned_placement_groups(ray.get_runtime_context().get_job_id()):
        _remove(group)


def release_places() -> None:
    """Gives all back before the job ends: a group that waits would get its place later, and keep it."""
    deadline = time.monotonic() + _PATIENCE
    with suppress(Exception):  # a cluster that does not answer has nothing to give back
        while (held := places()) and time.monotonic() < deadline:
            for key in held:
                _remove(bytes.fromhex(key))
            time.sleep(1)  # a run's controller asks again until it has died with its trial


def _remove(group: bytes) -> None:
    remove_placement_group(PlacementGroup(PlacementGroupID(group)))
