"""Lists and removes the placement groups of this job."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from adaptive_ray.ray_cluster.ray_compat import orphaned_placement_groups

#: The ID of a placement group ends with the ID of its job.
_JOB_DIGITS = 8
#: Timeout in seconds for removing all groups.
_TIMEOUT = 8


def places() -> dict[str, dict[str, Any]]:
    """The placement groups of this job by ID."""
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table().items()
    return {key: group for key, group in groups if key[-_JOB_DIGITS:] == job and group["state"] != "REMOVED"}


def release_orphans() -> None:
    """Removes placement groups whose creator died; Ray keeps them reserved until the job ends.

    The creator is the trial, in whose process the controller of its Ray Train run is.
    """
    for group in orphaned_placement_groups(ray.get_runtime_context().get_job_id()):
        _remove(group)


def release_places() -> None:
    """Removes all placement groups of this job. A pending group would otherwise be placed later and never released."""
    deadline = time.monotonic() + _TIMEOUT
    with suppress(Exception):  # the cluster may be unreachable
        while (held := places()) and time.monotonic() < deadline:
            for key in held:
                _remove(bytes.fromhex(key))
            time.sleep(1)  # trials recreate groups until they are killed


def _remove(group: bytes) -> None:
    remove_placement_group(PlacementGroup(PlacementGroupID(group)))
