"""Finds the free cores, GPUs and memory of each node of a cluster."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adaptive_ray.ray_cluster.cluster import local_resources
from adaptive_ray.ray_cluster.ray_compat import available_resources_per_node
from trainables.training.host_memory import free_memory

#: Timeout in seconds for a node to report its free memory.
_TIMEOUT = 60
#: Resolution of Ray's resources.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Node:
    """Free resources of a node."""

    name: str
    cpus: float
    gpus: float
    memory: int  # bytes

    def __str__(self) -> str:
        return f"{self.name}: {self.cpus:.3g} CPU cores, {self.gpus:.3g} GPUs, {self.memory / 2**30:.1f} GiB"

    def holds(self, cpus: float, gpus: float) -> int:
        """How many workers with these resources fit. A fraction of a GPU is allocated on one GPU."""
        fitting = self.cpus / cpus if cpus else 0.0
        if gpus:
            rest, whole = math.modf(self.gpus + _ROUNDING)
            fitting = min(fitting, whole * int(1 / gpus + _ROUNDING) + int(rest / gpus))
        return int(fitting + _ROUNDING)


def this_machine() -> Node:
    """Free resources of this machine, for a local cluster."""
    cpus, gpus = local_resources()
    return Node("this machine", cpus, gpus, free_memory())


def free_devices() -> dict[str, Node]:
    """Free resources of the live nodes by node ID; memory as reported by Ray."""
    free = available_resources_per_node()
    nodes = {}
    for node in ray.nodes():
        if node["Alive"]:
            has = free.get(node["NodeID"], {})
            values = has.get("CPU", 0.0), has.get("GPU", 0.0), int(has.get("memory", 0))
            nodes[node["NodeID"]] = Node(node["NodeManagerAddress"], *values)
    return nodes


def free_nodes() -> list[Node]:
    """Free resources of the live nodes. A task on each node measures its free memory.

    Nodes that do not answer are left out.
    """
    nodes = free_devices()
    ask = ray.remote(num_cpus=0)(free_memory)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote(): node
        for key, node in nodes.items()
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_TIMEOUT)
    found = []
    for reference in answered:
        node = asked[reference]
        with suppress(RayError):  # the node died
            found.append(replace(node, memory=min(node.memory, ray.get(reference))))
    return found


def described(nodes: Iterable[Node]) -> str:
    """Formats nodes in one line."""
    return "; ".join(map(str, nodes)) or "no nodes"


def no_place(bundles: Iterable[Mapping[str, float]], seconds: float) -> str:
    """Error message for a placement group that is still pending after ``seconds``."""
    wanted = Counter(", ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items())) for bundle in bundles)
    parts = "; ".join(f"{count} x ({resources})" for resources, count in wanted.items())
    return f"cannot place {parts} after {seconds:.0f} seconds; available: {described(free_devices().values())}"
