"""Finds the largest micro-batch that fits into a run's memory."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainables.simclr.batchnorm import GlobalBatchNorm2d, buffers_restored
from trainables.training.host_memory import MemoryTakenError, free_memory
from trainables.training.memory_limits import MARGIN, allotted_memory

#: Bytes of optimizer state and communication buckets allocated after the first step, per byte of weights.
_STATE = 3

#: Peak memory of forward and backward on the CPU, relative to what the forward keeps. Measured: 1.05 to 1.12 on
#: residual networks (widths 16 and 64, batches of 256 and 1,024).
_BACKWARD = 1.2

#: Seconds to wait for memory that other processes use, for instance while they exit.
_PATIENCE = 30


def largest_micro_batch(
    model: nn.Module,
    view_shape: tuple[int, int, int],
    limit: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
    memory: int | None = None,
) -> int:
    """Returns the largest number of images whose two views fit into the run's memory in forward and backward.

    The result is ``limit``, or ``limit`` halved as often as needed; with several workers, the smallest of all. It does
    not depend on the memory that other processes use, because batch statistics depend on it. On a GPU, sizes are tried.
    On the CPU, where a process that allocates too much is killed, the need is computed from the saved tensors of a
    forward pass.

    Args:
        model: Maps views [2m, C, H, W] to projections; not wrapped for data-parallel training. Its gradients are reset
            and its buffers restored.
        view_shape: C, H, W.
        limit: Size of the largest shard.
        memory: See ``allotted_memory``.

    Raises:
        MemoryError: Not even the smallest micro-batch fits.
        MemoryTakenError: Other processes use the memory of this run.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    allowed = (1 - MARGIN) * allotted_memory(device, memory) - _STATE * weights

    def step(size: int) -> None:
        views = torch.zeros(2 * size, *view_shape, device=device).contiguous(memory_format=torch.channels_last)
        with autocast:
            projections = model(views)
        projections.sum().backward()

    def fits(size: int) -> bool:
        if device.type == "cuda":
            return _fits_on_gpu(partial(step, size), model, device, allowed)
        needed = _BACKWARD * kept_bytes(model, torch.empty(2 * size, *view_shape, device="meta"), autocast)
        if needed <= allowed:
            _wait_for(free_memory, needed, "this machine's memory")
        return needed <= allowed

    norms = [module for module in model.modules() if isinstance(module, GlobalBatchNorm2d)]
    for norm in norms:
        norm.alone = True  # workers may test different sizes
    taken: MemoryTakenError | None = None
    with buffers_restored(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        size = limit
        try:
            while size and not fits(size):
                size = 0 if size <= 2 else max(2, math.ceil(size / 2))
        except MemoryTakenError as error:
            taken, size = error, -1
    for norm in norms:
        norm.alone = False
    model.zero_grad(set_to_none=True)
    if dist.is_initialized():
        smallest = torch.tensor(size, device=device)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        size = int(smallest)
    if size < 0:
        raise taken or MemoryTakenError("out of memory: other processes use the memory of another worker")
    if not size:
        raise MemoryError(
            f"out of memory: not even {min(limit, 2)} images of {view_shape[1]} x {view_shape[2]} pixels fit into "
            f"{max(allowed, 0) / 2**30:.2f} GiB; use a smaller encoder or smaller images"
        )
    return size


def _fits_on_gpu(step: Callable[[], None], model: nn.Module, device: torch.device, allowed: float) -> bool:
    """Runs a step. If memory is exhausted because other processes use it, waits and tries again."""
    name = f"GPU {device.index or 0} ({torch.cuda.get_device_name(device)})"
    while True:
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        try:
            step()
            return torch.cuda.max_memory_allocated(device) - start <= allowed
        except torch.OutOfMemoryError:
            pass  # leaving the handler frees the tensors that the error refers to
        finally:
            model.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
        if torch.cuda.mem_get_info(device)[0] >= allowed:
            return False
        _wait_for(lambda: torch.cuda.mem_get_info(device)[0], allowed, name)


def _wait_for(free: Callable[[], int], needed: float, where: str) -> None:
    """Waits until ``needed`` bytes are free. Raises ``MemoryTakenError`` if they are not free in time."""
    deadline = time.monotonic() + _PATIENCE
    while free() < needed:
        if time.monotonic() > deadline:
            raise MemoryTakenError(
                f"out of memory: {needed / 2**30:.2f} GiB of {where} are reserved for this run, but only "
                f"{free() / 2**30:.2f} GiB are free; stop other processes or lower simclr.micro_batch"
            )
        time.sleep(0.5)


def training_bytes(model: nn.Module, view_shape: tuple[int, int, int], size: int) -> int:
    """Returns the bytes that training needs on the CPU in float32 with micro-batches of ``size`` images."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    views = torch.empty(2 * size, *view_shape, device="meta")
    return int((2 + _STATE) * weights + _BACKWARD * kept_bytes(model, views, nullcontext()))


def kept_bytes(model: nn.Module, views: Tensor, autocast: AbstractContextManager[object]) -> int:
    """Returns the bytes that a forward pass on ``views`` (on the meta device) saves for the backward pass."""
    tensors = [*model.parameters(), *model.buffers()]
    shadow = copy.deepcopy(model, {id(t): t.detach().to("meta").requires_grad_(t.requires_grad) for t in tensors})
    weights = {id(p) for p in shadow.parameters()}
    kept: dict[int, Tensor] = {}  # by storage, because a tensor may be saved several times

    def pack(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        output = shadow(views)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total
