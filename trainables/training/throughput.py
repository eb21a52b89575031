"""Measures the throughput of a run without training it."""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext
from statistics import median

import torch

from schedulers import Candidate
from trainables.training.broadcast import broadcast_from_rank0
from trainables.training.run import Run

#: Updates before the clock starts.
_WARM_UP = 3
#: Timed parts, whose median counts: other programs on the machine disturb some of them.
_PARTS = 5


def measure_throughput(
    run: Run, *, seconds: float = 2.0, candidate: Candidate | None = None, graphs: bool = True
) -> float:
    """Returns the images per second of a run's updates over all workers. The run itself is unchanged.

    Makes updates for about ``seconds`` and restores the state, bit for bit. Compilation and the capture of CUDA graphs
    are not timed. All workers must call it together; all return the value of rank 0.

    Args:
        run: Measured from its present position, with this process's threads.
        seconds: Approximate duration of the timed updates; each part has at least one update.
        candidate: Batch size and accumulation to measure; None: those of the run.
        graphs: Whether CUDA graphs may be used. One of several workers, whose speed this one may measure, has none.
    """
    state, step, device = run.state, run.step, run.step.loader.device
    before, own = copy.deepcopy(state.state_dict()), state.candidate
    state.candidate = candidate or own
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        nullcontext() if graphs else step.gradients.without_graphs(),
    ):
        step.prepare(step.updates_until(state.samples + 1))
        _, duration = _timed(run, _WARM_UP, before["samples_seen"])
        fitting = int(_WARM_UP * seconds / (_PARTS * duration))
        updates = broadcast_from_rank0(max(fitting, 1), device)
        parts = [_timed(run, updates, before["samples_seen"]) for _ in range(_PARTS)]
    state.candidate = own
    state.load_state_dict(before)
    return broadcast_from_rank0(median(images / duration for images, duration in parts), device)


def _timed(run: Run, updates: int, start: int) -> tuple[int, float]:
    """Makes updates and returns their images and their duration in seconds."""
    state, device, images = run.state, run.step.loader.device, 0
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(updates):
        if state.samples >= state.settings.budget:
            state.samples = start
        position = state.samples
        for update in run.step.updates_until(position + 1):
            run.step(update)
        images += state.samples - position
    _synchronize(device)
    return images, time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
