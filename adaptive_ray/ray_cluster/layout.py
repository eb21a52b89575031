"""How the free cores, GPUs and memory of a cluster's nodes are shared between candidates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.nodes import Node, described
from trainables.training.micro_batch import MARGIN

#: Workers that share a core, or a GPU, at most: further candidates wait for their turn.
_ON_A_CORE, _ON_A_GPU = 2, 4
#: Seconds in which what others have just given back is counted as free.
_PATIENCE = 30
#: Bytes that a candidate's processes hold alone, besides its workers: its trial, and Ray Train's controller, cleaner,
#: queue and barrier. 545 MB were measured with Ray 2.60 on Linux.
_CANDIDATE = 550 << 20
#: Bytes of a worker's process before it trains: 400 MB were measured with torch 2.15 on a CPU; with CUDA's libraries
#: 1 GB on an H200, to which pinned memory for batches comes.
_WORKER, _WORKER_ON_GPU = 400 << 20, 1536 << 20


@dataclass(frozen=True)
class Workers:
    """The workers of one Ray Train run."""

    count: int
    cpus: float  # of each
    gpus: float  # of each
    memory: int | None = None  # bytes that training may take of each one's node; None: it takes a GPU's

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    @property
    def process(self) -> int:
        """Bytes of its node's memory that each takes besides training, with its part of what serves them all."""
        return (_WORKER_ON_GPU if self.gpus else _WORKER) + _CANDIDATE // self.count

    def on(self, node: Node) -> int:
        """How many of them fit on a node, by its cores and GPUs."""
        return node.holds(self.cpus, self.gpus)


@dataclass(frozen=True)
class Layout:
    """Who trains on what: each candidate's workers in the race, and the winner's after it.

    Args:
        race: Of each candidate.
        winner: Of the winner.
        concurrent: Candidates that train at once; the others wait until these have spent the window.
    """

    race: Workers
    winner: Workers
    concurrent: int

    @classmethod
    def read(cls, written: dict[str, Any]) -> Layout:
        """From what ``dataclasses.asdict`` has made of one."""
        return cls(Workers(**written["race"]), Workers(**written["winner"]), written["concurrent"])

    @classmethod
    def of(
        cls, config: ExperimentConfig, nodes: Sequence[Node], training: int = 0, *, before: Layout | None = None
    ) -> Layout:
        """Shares out what is free. What one worker has, it has from one node, and of one GPU.

        Workers share a core or a GPU if all candidates can then train at once. There are limits to that, and the memory
        is another: beyond them candidates wait for their turn, unless ``race.max_concurrent`` says otherwise.

        Args:
            config: The run.
            nodes: What is free on each.
            training: Bytes that a worker's training takes of its node's memory, at least.
            before: Of the run that is resumed. Its workers stay as they were, with as much memory, if there is room.

        Raises:
            UserError: A run needs more than is free.
        """
        on_gpu = any(node.gpus >= 1 for node in nodes)
        if config.trial.use_gpu is True and not on_gpu:
            raise UserError(
                f"trial.use_gpu = true, but no GPU is free: {described(nodes)}; set trial.use_gpu=false or add one"
            )
        on_gpu = on_gpu and config.trial.use_gpu is not False
        whole = _sized(config, nodes, on_gpu=on_gpu)
        winner = replace(whole, count=_winner_workers(config, whole, nodes))
        per_trial, wanted = config.trial.workers, config.race.max_concurrent
        most = len(config.choices) if config.explore == "race" else 1
        most = most if wanted == "auto" else min(wanted, most)
        sharing = math.ceil(per_trial * most / sum(map(whole.on, nodes)))
        if wanted == "auto":
            sharing = min(sharing, _ON_A_GPU if on_gpu else _ON_A_CORE)
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
                    f"a candidate takes {per_trial} x {needed / 2**30:.1f} GiB of memory, and free are: "
                    f"{described(nodes)}; end other programs, or try anyway with race.max_concurrent=1"
                )
        concurrent = min(sum(slots) // per_trial, most)
        race = _with_memory(race, nodes, slots, concurrent * per_trial)
        winner = _with_memory(winner, nodes, list(map(whole.on, nodes)), winner.count)
        if replace(winner, memory=race.memory) == race:  # more memory alone is no reason to restart the winner
            winner = race
        return cls(race, winner, concurrent)


def laid_out(
    config: ExperimentConfig,
    nodes: Sequence[Node],
    training: int,
    *,
    before: Layout | None = None,
    again: Callable[[], Sequence[Node]] | None = None,
) -> Layout:
    """``Layout.of``, with some patience where there is no room, or not as much as before.

    Args:
        config, nodes, training, before: See ``Layout.of``.
        again: Asks once more what is free: whoever has just ended may still hold what it had. None: there is nobody.

    Raises:
        UserError: A run needs more than is free.
    """
    deadline = time.monotonic() + (_PATIENCE if again is not None else 0)
    while True:
        try:
            layout = Layout.of(config, nodes, training, before=before)
        except UserError:
            if again is None or time.monotonic() > deadline:
                raise
        else:
            as_before = before is None or (layout.race, layout.winner) == (before.race, before.winner)
            if as_before or again is None or time.monotonic() > deadline:
                return layout
        time.sleep(1)
        nodes = again()


def _sized(config: ExperimentConfig, nodes: Sequence[Node], *, on_gpu: bool, sharing: int = 1) -> Workers:
    """A candidate's workers, of which ``sharing`` share a GPU, or the cores that one is to have."""
    cpus, gpus = config.trial.cpus_per_worker, 0.0
    if on_gpu:
        cores = [node.cpus / int(node.gpus) for node in nodes if node.gpus >= 1 and node.cpus > 0]
        cpus, gpus = min([cpus * sharing, *cores]) if cores else 0.0, 1.0
    return Workers(config.trial.workers, _rounded(cpus / sharing), _rounded(gpus / sharing))


def _winner_workers(config: ExperimentConfig, whole: Workers, nodes: Sequence[Node]) -> int:
    """How many workers the winner has. Whether it, and each candidate, can have as many as are asked for."""
    available = sum(map(whole.on, nodes))
    size = f"{whole.gpus:g} GPU" if whole.gpus else f"{whole.cpus:g} CPU cores"
    smallest = min(candidate.batch_size for candidate in config.choices)
    winner = available if config.winner.workers == "auto" else config.winner.workers
    for name, wanted in (("trial.workers", config.trial.workers), ("winner.workers", winner)):
        if not 1 <= wanted <= available:
            raise UserError(
                f"{name} = {wanted}: there is room for {available} workers of {size}, and free are: "
                f"{described(nodes)}; lower it, wait, or join a larger cluster with --address"
            )
        if wanted > smallest and (name == "trial.workers" or config.winner.workers != "auto"):
            raise UserError(
                f"{name} = {wanted}: batch size {smallest} leaves workers without an image; "
                f"lower it or race larger batches"
            )
    return min(winner, smallest)


def _with_memory(workers: Workers, nodes: Sequence[Node], slots: Sequence[int], most: int) -> Workers:
    """With what each gets of its node, where the fullest node has as many as there can be."""
    if workers.gpus or workers.memory is not None:
        return workers
    shares = [node.memory // min(slot, most) for node, slot in zip(nodes, slots, strict=True) if slot]
    return replace(workers, memory=max(min(shares) - workers.process, 0))


def _rounded(amount: float) -> float:
    """Down to Ray's unit of resources: a third of a GPU three times is one GPU at most."""
    return math.floor(amount * 10_000 + 1e-6) / 10_000
