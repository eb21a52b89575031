"""Resolves and checks the address of a Ray cluster; ``ray.init`` itself retries for 15 minutes."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
from ray.exceptions import RayError

from adaptive_ray.errors import UserError, first_line
from adaptive_ray.ray_cluster.private_directory import is_private
from adaptive_ray.ray_cluster.ray_compat import (
    GetClusterIdRequest,
    NodeInfoGcsServiceStub,
    gcs_utils,
    maybe_enable_token_auth_if_token_available,
    services,
)

#: Timeout in seconds, for the head node and then for the local node.
_TIMEOUT = 10
_HINT = "use the address printed by `ray start` (HOST:6379 by default), or omit it to start a local cluster"


def cluster_address(address: str | None) -> str | None:
    """The address of the cluster to join: the given one or ``RAY_ADDRESS``; None: start a local cluster."""
    named = address or os.environ.get("RAY_ADDRESS")
    return None if named in (None, "", "local") else named


def check_address(address: str | None) -> None:
    """Raises ``UserError`` if the cluster does not answer or has no node on this machine. Takes at most 20 seconds.

    ``address`` is ``HOST:PORT`` of the head's GCS, or ``auto``; None: ``RAY_ADDRESS``, if set.
    """
    address = cluster_address(address)
    if address is None:
        return
    if "://" in address:
        raise UserError(
            f"no Ray cluster at {address}: only HOST:PORT is supported; to submit from another machine, use "
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
        NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=_TIMEOUT)
        node = services.get_node_to_connect_for_driver(services.GcsClient(address=found), timeout_seconds=_TIMEOUT)
    except grpc.RpcError as error:
        raise UserError(f"no Ray cluster at {address}: {_cause(error)}") from None
    except RayError as error:
        raise UserError(f"the Ray cluster at {address} refused the connection: {first_line(error)}") from None
    except RuntimeError:
        raise UserError(
            f"the Ray cluster at {address} has no running node on this machine; add one with "
            f"`ray start --address={found}`, or use `ray job submit`"
        ) from None
    finally:
        channel.close()
    if is_private(Path(node.temp_dir)):
        raise UserError(f"the Ray cluster at {address} is private to another run; {_HINT}")


def _cause(error: grpc.RpcError) -> str:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return "it requires a token; copy it to ~/.ray/auth_token and set RAY_AUTH_MODE=token"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"timed out after {_TIMEOUT} seconds; {_HINT}"
    if "HTTP/2" in details or code is not grpc.StatusCode.UNAVAILABLE:
        return f"another service listens on this port; {_HINT}"
    return f"{details.rpartition(': ')[2].rstrip('].')}; {_HINT}"
