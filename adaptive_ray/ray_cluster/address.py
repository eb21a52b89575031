"""Which Ray cluster to join, and whether it answers; ``ray.init`` itself tries for a quarter of an hour."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
from ray.exceptions import RayError

from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.private_directory import is_private
from adaptive_ray.ray_cluster.ray_compat import (
    GetClusterIdRequest,
    NodeInfoGcsServiceStub,
    gcs_utils,
    maybe_enable_token_auth_if_token_available,
    services,
)

#: Seconds that the head, and then this machine's node, has to answer.
_PATIENCE = 10
_HINT = "give what `ray start` printed, HOST:6379 by default, or leave it out to start a cluster on this machine"


def cluster_address(address: str | None) -> str | None:
    """The running cluster to join, if any: the given one, or the one that a job or the environment names."""
    named = address or os.environ.get("RAY_ADDRESS")
    return None if named in (None, "", "local") else named


def check_address(address: str | None) -> None:
    """Asks the head of the cluster to join, if any, and looks for the node on this machine that a driver needs.

    Args:
        address: ``HOST:PORT`` of the head's GCS, or ``auto``; None: the one that the environment names.

    Raises:
        UserError: There is no cluster that can be used from here. It takes 20 seconds at most.
    """
    address = cluster_address(address)
    if address is None:
        return
    if "://" in address:
        raise UserError(
            f"no Ray cluster at {address}: only HOST:PORT can be joined; to run on a cluster from elsewhere, use "
            f"`ray job submit --address http://HEAD:8265 -- adaptive-ray run ...`"
        )
    try:
        found = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address}: {first_line(error)}; {_HINT}") from None
    if address == "auto":
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init does
    channel = gcs_utils.create_gcs_channel(found)
    try:
        NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=_PATIENCE)
        node = services.get_node_to_connect_for_driver(services.GcsClient(address=found), timeout_seconds=_PATIENCE)
    except grpc.RpcError as error:
        raise UserError(f"no Ray cluster at {address}: {_cause(error)}") from None
    except RayError as error:
        raise UserError(f"the Ray cluster at {address} refuses: {first_line(error)}") from None
    except RuntimeError:
        raise UserError(
            f"the Ray cluster at {address} has no running node on this machine; add one with "
            f"`ray start --address={found}`, or use `ray job submit`"
        ) from None
    finally:
        channel.close()
    if is_private(Path(node.temp_dir)):
        raise UserError(f"the Ray cluster at {address} belongs to another run alone and ends with it; {_HINT}")


def _cause(error: grpc.RpcError) -> str:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return "it asks for a token; copy it to ~/.ray/auth_token and set RAY_AUTH_MODE=token"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer in {_PATIENCE} seconds; {_HINT}"
    if "HTTP/2" in details or code is not grpc.StatusCode.UNAVAILABLE:
        return f"something else listens there; {_HINT}"
    return f"{details.rpartition(': ')[2].rstrip('].')}; {_HINT}"


def first_line(error: Exception) -> str:
    """What an error says, without its explanations; its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
