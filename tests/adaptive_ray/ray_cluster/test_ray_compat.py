"""Private names of Ray's core that the product uses. A failure says what an upgrade breaks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from ray._private import ray_constants

from adaptive_ray.ray_cluster import ray_compat, setup_worker

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


@pytest.mark.parametrize(
    ("parameter", "breaks"),
    [
        ("dashboard_agent_listen_port", "a local cluster takes port 52365, and clusters started later get no jobs"),
        ("include_log_monitor", "a process reads logs that nobody shows"),
        ("setup_worker_path", "every worker imports Ray twice"),
    ],
)
def test_a_local_cluster_has_the_parameter(parameter: str, breaks: str) -> None:
    assert parameter in inspect.signature(ray_compat.RayParams.__init__).parameters, breaks


def test_ray_finds_the_script_of_workers_by_its_name() -> None:
    """Otherwise workers without a runtime environment are started by it, too."""
    assert Path(setup_worker.__file__).name == ray_constants.SETUP_WORKER_FILENAME


def test_placement_groups_name_their_creator() -> None:
    """Otherwise pruned trials keep their workers' resources reserved, and the winner is not placed."""
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    fields = {field.name for field in PlacementGroupTableData.DESCRIPTOR.fields}
    assert {"creator_actor_id", "creator_actor_dead", "creator_job_id", "state", "placement_group_id"} <= fields
