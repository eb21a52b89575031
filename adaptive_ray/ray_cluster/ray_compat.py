"""Private names of Ray's core 2.60 that this package uses. Nothing else in adaptive_ray imports any.

Ray may change them in any release: pyproject.toml pins ``ray<2.61``, and
tests/adaptive_ray/ray_cluster/test_ray_compat.py says what each is needed for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray import ActorID
from ray._private import gcs_utils, services, utils, worker
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.parameter import RayParams
from ray._private.state import available_resources_per_node, state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

__all__ = [
    "GetClusterIdRequest",
    "NodeInfoGcsServiceStub",
    "RayParams",
    "available_resources_per_node",
    "gcs_utils",
    "maybe_enable_token_auth_if_token_available",
    "orphaned_placement_groups",
    "services",
    "utils",
    "worker",
]


def orphaned_placement_groups(job: str) -> Iterator[bytes]:
    """Yields the ids of a job's placement groups whose creating actor has died; Ray's public API does not say so."""
    drivers = (b"", ActorID.nil().binary())  # a group that a driver has created has no creating actor
    accessor: Any = state._connect_and_get_accessor()
    for record in accessor.get_placement_group_table():
        group = PlacementGroupTableData.FromString(record)
        if group.state == PlacementGroupTableData.REMOVED or group.creator_job_id.hex() != job:
            continue
        if group.creator_actor_id in drivers:
            continue
        # Ray marks the groups that exist when their creator dies, but not one that is registered just after.
        if group.creator_actor_dead or state.actor_table(group.creator_actor_id.hex()).get("State") == "DEAD":
            yield group.placement_group_id
