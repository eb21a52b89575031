"""Measures the throughput of a run without training it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch

from schedulers import Candidate
from trainables.training.broadcast import broadcast_from_rank0
from trainables.training.run import Run

#: Timed parts, whose median counts: other programs on the machine disturb some of them.
_PARTS = 5


def measure_throughput(
    run: Run,
    *,
    seconds: float = 2.0,
    candidate: Candidate | None = None,
    graphs: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Returns the images per second of a run's updates over all workers. The run itself is unchanged.

    Makes updates for about ``seconds`` and restores the state, bit for bit. Compilation and the capture of CUDA graphs
    are not timed. All workers must call it together; all return the value of rank 0.

    Args:
        run: Measured from its present position, with this process's threads.
        seconds: Approximate duration of the timed updates; at least one.
        candidate: Batch size and accumulation to measure; None: those of the run.
        graphs: Whether CUDA graphs may be used. One of several workers, whose speed this one may measure, has none.
        clock: Returns seconds.
    """
    state, step, device = run.state, run.step, run.step.loader.device
    before, own = copy.deepcopy(state.state_dict()), state.candidate

    def timed(updates: int) -> tuple[int, float]:
        return _timed(run, updates, before["samples_seen"], clock)

    state.candidate = candidate or own
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        nullcontext() if graphs else step.gradients.without_graphs(),
    ):
        step.prepare(step.updates_until(state.samples + 1))
        updates = 1
        for _ in range(2):  # neither is counted: the first update fills caches, and a GPU takes a while to speed up
            _, duration = timed(updates)
            fitting = broadcast_from_rank0(max(int(updates * seconds / duration), 1), device)
            updates = max(fitting // _PARTS, 1)
        parts = [timed(updates) for _ in range(min(fitting, _PARTS))]
    state.candidate = own
    state.load_state_dict(before)
    return broadcast_from_rank0(median(images / duration for images, duration in parts), device)


def _timed(run: Run, updates: int, start: int, clock: Callable[[], float]) -> tuple[int, float]:
    """Makes updates and returns their images and their duration in seconds."""
    state, device, images = run.state, run.step.loader.device, 0
    _synchronize(device)
    started = clock()
    for _ in range(updates):
        if state.samples >= state.settings.budget:
            state.samples = start
        position = state.samples
        for update in run.step.updates_until(position + 1):
            run.step(update)
        images += state.samples - position
    _synchronize(device)
    return images, clock() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
