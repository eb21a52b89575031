"""Divides the free cores, GPUs and memory of a cluster among the candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.nodes import Node, described
from trainables.training.memory_limits import MARGIN

#: Maximum number of workers per core and per GPU; more candidates wait until these finish.
_PER_CORE, _PER_GPU = 2, 4
#: Memory in bytes of a candidate's processes besides its workers: the trial, and Ray Train's controller, queue and
#: barrier. 545 MB were measured with Ray 2.60 on Linux, when Ray Train also started its placement group cleaner.
_CANDIDATE = 550 << 20
#: Memory in bytes of a worker before it trains. Measured: 400 MB with torch 2.15 on a CPU; on an H200 1 GB with CUDA's
#: libraries, plus pinned memory for batches.
_WORKER, _WORKER_ON_GPU = 400 << 20, 1536 << 20


@dataclass(frozen=True)
class Workers:
    """Number of workers of a Ray Train run, and resources of each."""

    count: int
    cpus: float
    gpus: float
    memory: int | None = None  # bytes for training on the node; None: training uses the memory of the GPU

    @property
    def threads(self) -> int:
        """Threads of torch per worker."""
        return max(1, int(self.cpus))

    @property
    def process(self) -> int:
        """Memory in bytes of each worker's processes besides training."""
        return (_WORKER_ON_GPU if self.gpus else _WORKER) + _CANDIDATE // self.count

    def trial_config(self) -> dict[str, Any]:
        """Returns the entries of a trial's configuration; see ``trainables.on_ray.trial.run_trial``."""
        each = {"cpus": self.cpus, "gpus": self.gpus, "threads": self.threads, "memory": self.memory}
        return {"workers": self.count, **each}

    def on(self, node: Node) -> int:
        """How many workers fit on a node, by cores and GPUs."""
        return node.holds(self.cpus, self.gpus)


@dataclass(frozen=True)
class Layout:
    """Workers of each candidate in the race and of the winner."""

    race: Workers
    winner: Workers
    concurrent: int  # number of candidates that train concurrently
    slowdown: float = 1.0  # duration of the race in windows: more than one if candidates share devices or wait

    @classmethod
    def read(cls, written: dict[str, Any]) -> Layout:
        """Inverse of ``dataclasses.asdict``."""
        return cls(**{**written, "race": Workers(**written["race"]), "winner": Workers(**written["winner"])})

    @classmethod
    def of(
        cls, config: ExperimentConfig, nodes: Sequence[Node], training: int = 0, *, before: Layout | None = None
    ) -> Layout:
        """Divides the free resources. A worker's cores are on one node, and its share of a GPU on one GPU.

        Workers share cores and GPUs so that all candidates can train concurrently, within limits and if memory
        permits; the others wait. ``race.max_concurrent`` overrides this.

        Args:
            training: Minimum memory in bytes of a worker's training on a CPU.
            before: Layout of the run to resume; kept if the resources are free.

        Raises:
            UserError: The resources of ``nodes`` are insufficient.
        """
        on_gpu = any(node.gpus >= 1 for node in nodes)
        if config.trial.use_gpu is True and not on_gpu:
            raise UserError(
                f"trial.use_gpu = true, but no GPU is available: {described(nodes)}; set it to false or add one"
            )
        on_gpu = on_gpu and config.trial.use_gpu is not False
        per_trial, wanted = config.trial.workers, config.race.max_concurrent
        whole = _sized(config, nodes, on_gpu=on_gpu)
        winner = _winner(config, whole, nodes, on_gpu=on_gpu)
        most = len(config.choices) if config.explore == "race" else 1
        most = most if wanted == "auto" else min(wanted, most)
        sharing = math.ceil(per_trial * most / sum(map(whole.on, nodes)))
        if wanted == "auto":
            cores = whole.cpus if config.trial.cpus_per_worker == "auto" else 1
            sharing = min(sharing, _PER_GPU if on_gpu else max(int(_PER_CORE * cores), 1))
        if on_gpu and per_trial > 1:
            sharing = 1  # NCCL refuses two workers of one run on a GPU
        race = _sized(config, nodes, on_gpu=on_gpu, sharing=sharing)
        if before is not None and sum(map(before.race.on, nodes)) >= per_trial:
            race = before.race
        if before is not None and sum(map(before.winner.on, nodes)) >= before.winner.count:
            winner = before.winner
        slots = [race.on(node) for node in nodes]
        if wanted == "auto":
            needed = race.process + (0 if on_gpu else training)
            slots = [min(s, int((1 - MARGIN) * node.memory / needed)) for s, node in zip(slots, nodes, strict=True)]
            if sum(slots) < per_trial:
                raise UserError(
                    f"a candidate needs {per_trial} x {needed / 2**30:.1f} GiB of memory; available: "
                    f"{described(nodes)}; stop other programs, or try race.max_concurrent=1"
                )
        concurrent = min(sum(slots) // per_trial, most)
        race = _with_memory(race, nodes, slots, concurrent * per_trial)
        winner = _with_memory(winner, nodes, list(map(winner.on, nodes)), winner.count)
        shared = whole.gpus / race.gpus if race.gpus else whole.cpus / race.cpus
        slowdown = round(math.ceil(most / concurrent) * max(shared, 1.0), 2)
        return cls(race, winner, concurrent, slowdown if before is None else before.slowdown)


def _sized(
    config: ExperimentConfig, nodes: Sequence[Node], *, on_gpu: bool, workers: int | None = None, sharing: int = 1
) -> Workers:
    """Returns workers that use whole devices; a ``sharing``-th of each if workers share a GPU or the cores of one.

    Args:
        config: Configuration of the run.
        nodes: Free resources.
        on_gpu: Whether each worker uses a GPU.
        workers: Number of workers; None: those of a candidate.
        sharing: Number of workers that share a device.
    """
    count = config.trial.workers if workers is None else workers
    wanted = config.trial.cpus_per_worker
    if on_gpu:
        cores = [node.cpus / int(node.gpus) for node in nodes if node.gpus >= 1 and node.cpus > 0]
        cpus, gpus = min([(1 if wanted == "auto" else wanted) * sharing, *cores]) if cores else 0.0, 1.0
    else:
        cpus, gpus = _cores(nodes, count) if wanted == "auto" else wanted, 0.0
    return Workers(count, _rounded(cpus / sharing), _rounded(gpus / sharing))


def _cores(nodes: Sequence[Node], workers: int) -> float:
    """Returns the most cores that each of ``workers`` workers can have; at least 1, even if they do not fit then."""
    sizes = sorted({node.cpus / count for node in nodes for count in range(1, workers + 1)}, reverse=True)
    fitting = (size for size in sizes if sum(node.holds(size, 0) for node in nodes) >= workers)
    return max(next(fitting, 1.0), 1.0)


def _winner(config: ExperimentConfig, whole: Workers, nodes: Sequence[Node], *, on_gpu: bool) -> Workers:
    """Returns the workers of the winner; checks that the configured numbers of workers can be placed.

    On CPUs, ``auto`` is the number of the race: one worker with all cores is faster than several workers.
    """
    wanted, per_trial = config.winner.workers, config.trial.workers
    auto = sum(map(whole.on, nodes)) if on_gpu else per_trial
    count = auto if wanted == "auto" else wanted
    winner = whole if count == per_trial else _sized(config, nodes, on_gpu=on_gpu, workers=count)
    smallest = min(candidate.batch_size for candidate in config.choices)
    for name, workers in (("trial.workers", whole), ("winner.workers", winner)):
        available = sum(map(workers.on, nodes))
        if not 1 <= workers.count <= available:
            size = f"{workers.gpus:g} GPU" if workers.gpus else f"{workers.cpus:g} CPU cores"
            raise UserError(
                f"{name} = {workers.count}: only {available} workers of {size} can be placed; available: "
                f"{described(nodes)}; lower it, wait, or join a larger cluster with --address"
            )
        if workers.count > smallest and (name == "trial.workers" or wanted != "auto"):
            raise UserError(
                f"{name} = {workers.count}: batch size {smallest} has fewer images than workers; "
                f"lower it or use larger batch sizes"
            )
    return replace(winner, count=min(count, smallest))


def _with_memory(workers: Workers, nodes: Sequence[Node], slots: Sequence[int], most: int) -> Workers:
    """Sets the memory per worker, from the node with the least memory per slot."""
    if workers.gpus or workers.memory is not None:
        return workers
    shares = [node.memory // min(slot, most) for node, slot in zip(nodes, slots, strict=True) if slot]
    return replace(workers, memory=max(min(shares) - workers.process, 0))


def _rounded(amount: float) -> float:
    """Rounds down to Ray's resolution of resources, so that three thirds of a GPU do not exceed one."""
    return math.floor(amount * 10_000 + 1e-6) / 10_000
