"""What each node of a cluster has free, now: what others use there, in Ray or beside it, does not count."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import ray
from ray import ObjectRef
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adaptive_ray.ray_cluster.cluster import local_resources
from adaptive_ray.ray_cluster.ray_compat import available_resources_per_node
from trainables.training.host_memory import free_memory

#: Seconds in which a node must say how much memory it has free.
_PATIENCE = 60
#: Ray counts resources in ten-thousandths.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Node:
    """What is free on one node."""

    name: str
    cpus: float
    gpus: float
    memory: int  # bytes

    def __str__(self) -> str:
        return f"{self.name}: {self.cpus:.3g} CPU cores, {self.gpus:.3g} GPUs, {self.memory / 2**30:.1f} GiB"

    def holds(self, cpus: float, gpus: float) -> int:
        """How many workers fit that take so much each. A share of a GPU lies on one GPU."""
        fitting = self.cpus / cpus if cpus else 0.0
        if gpus:
            rest, whole = math.modf(self.gpus + _ROUNDING)
            fitting = min(fitting, whole * int(1 / gpus + _ROUNDING) + int(rest / gpus))
        return int(fitting + _ROUNDING)


def this_machine() -> Node:
    """This machine, as a cluster that is started here has it."""
    cpus, gpus = local_resources()
    return Node("this machine", cpus, gpus, free_memory())


def free_devices() -> dict[str, Node]:
    """The live nodes of the cluster by their ids, with the memory that Ray has not given out."""
    free = available_resources_per_node()
    nodes = {}
    for node in ray.nodes():
        if node["Alive"]:
            has = free.get(node["NodeID"], {})
            values = has.get("CPU", 0.0), has.get("GPU", 0.0), int(has.get("memory", 0))
            nodes[node["NodeID"]] = Node(node["NodeManagerAddress"], *values)
    return nodes


def free_nodes() -> list[Node]:
    """The live nodes of the cluster that this process has joined; a task on each tells its free memory.

    A node that does not answer cannot train either.
    """
    nodes = free_devices()
    ask = ray.remote(num_cpus=0)(free_memory)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote(): node
        for key, node in nodes.items()
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE)
    return [node for reference in answered if (node := _with_memory(asked[reference], reference)) is not None]


def _with_memory(node: Node, reference: ObjectRef) -> Node | None:
    """With what is really free, if Ray has not given it out; None: the node is gone."""
    try:
        return replace(node, memory=min(node.memory, ray.get(reference)))
    except RayError:
        return None


def described(nodes: Iterable[Node]) -> str:
    """What is free, in one line."""
    return "; ".join(map(str, nodes)) or "no node"


def no_place(bundles: Iterable[Mapping[str, float]], seconds: float) -> str:
    """Says that a placement group's bundles have found no place in so many seconds, and what is free."""
    wanted = Counter(", ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items())) for bundle in bundles)
    parts = "; ".join(f"{count} x ({resources})" for resources, count in wanted.items())
    return f"no place for {parts} in {seconds:.0f} seconds; free are: {described(free_devices().values())}"
