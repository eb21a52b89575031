"""Private names of Ray's core that the product uses. A failure says what an upgrade breaks."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from adaptive_ray.ray_cluster import ray_compat

NO_ADDRESS = "an address at which no cluster answers takes ray.init a quarter of an hour"
SIGNALS = "SIGTERM ends a run in the middle of a write"


@pytest.mark.parametrize(
    ("owner", "name", "breaks"),
    [
        (ray_compat.RayParams, "__init__", "a local cluster takes port 52365, and clusters started later get no jobs"),
        (ray_compat.utils, "set_sigterm_handler", SIGNALS),
        (ray_compat.worker, "connect", SIGNALS),
        (ray_compat.worker, "FunctionActorManager", SIGNALS),
        (ray_compat.services, "canonicalize_bootstrap_address", NO_ADDRESS),
        (ray_compat.gcs_utils, "create_gcs_channel", NO_ADDRESS),
        (ray_compat.services, "get_node_to_connect_for_driver", NO_ADDRESS),
        (ray_compat.NodeInfoGcsServiceStub, "__init__", NO_ADDRESS),
        (ray_compat.GetClusterIdRequest, "SerializeToString", NO_ADDRESS),
    ],
)
def test_ray_has(owner: Any, name: str, breaks: str) -> None:
    assert hasattr(owner, name), f"{name} is gone: {breaks}"


def test_the_agents_port_can_be_chosen() -> None:
    """Otherwise a local cluster takes port 52365, and clusters that are started later get no jobs."""
    assert "dashboard_agent_listen_port" in inspect.signature(ray_compat.RayParams.__init__).parameters


def test_placement_groups_name_their_creator() -> None:
    """Otherwise pruned trials keep their workers' resources reserved, and the winner is not placed."""
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    fields = {field.name for field in PlacementGroupTableData.DESCRIPTOR.fields}
    assert {"creator_actor_id", "creator_actor_dead", "creator_job_id", "state", "placement_group_id"} <= fields
