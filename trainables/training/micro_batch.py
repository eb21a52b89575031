"""A run's share of the memory, and the largest micro-batch that fits into it."""

from __future__ import annotations

import copy
import gc
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainables.simclr.batchnorm import GlobalBatchNorm2d
from trainables.training.host_memory import (
    MemoryTakenError,
    address_space_left,
    free_memory,
    resident_memory,
    total_memory,
)

#: The share of the memory that stays free: fragmentation, libraries' workspaces, a larger picture now and then.
MARGIN = 0.1

#: Bytes of optimizer state and communication buckets that come on top of the first step's, per byte of weights.
_STATE = 3

#: Peak of forward and backward on the CPU, per byte that the forward keeps: 1.05 to 1.12 were measured on residual
#: networks (widths 16 and 64, batches of 256 and 1,024).
_BACKWARD = 1.2

#: For the environment of a worker's process, before it starts: 1.2 to 1.3 times the training speed on a CPU
#: (benchmarks/README.md). glibc gives every large block back to the system and gets it again, page by page and zeroed,
#: in every step; so it keeps them, for all threads together, and the process stays as large as its largest step.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_ARENA_MAX": "1",
}

#: Bytes of a GPU that a process takes besides its tensors, for CUDA's context and libraries: 767 MiB on an H200.
CONTEXT = 1 << 30

#: Seconds that a run waits for memory that belongs to its share: those who have just ended may still hold it.
_PATIENCE = 30


def share_gpu(device: torch.device, share: float) -> None:
    """Limits this process to ``share`` of a GPU's memory, context included."""
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(max(share - CONTEXT / total, 0.0), device)


def allotted_memory(device: torch.device, memory: int | None = None) -> int:
    """Bytes that the run may still take on ``device``; what other processes hold does not count.

    On a GPU it is the share of all its memory that ``share_gpu`` has set. On the CPU it is ``memory``; None: of all the
    memory of the machine or container the share of the cores that torch uses, and no more than this process may map.
    """
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        return int(torch.cuda.get_per_process_memory_fraction(device) * total) - torch.cuda.memory_allocated(device)
    if memory is None:
        share = min(torch.get_num_threads() / (os.cpu_count() or 1), 1.0)
        memory = int(total_memory() * share) - resident_memory()
    left = address_space_left()
    return memory if left is None else min(memory, left // 2)  # threads map a lot of it that they never use


def largest_micro_batch(
    model: nn.Module,
    view_shape: tuple[int, int, int],
    limit: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
    memory: int | None = None,
) -> int:
    """Images in two views whose forward and backward fit into the run's share of the memory.

    It is ``limit``, or what halving it leads to, and the same whatever other processes hold: batch statistics depend on
    it. A GPU tries. On the CPU, where too much memory gets a process killed, the need is computed from what a forward
    keeps for its backward. All workers agree on the smallest.

    Args:
        model: Views [2m, C, H, W] -> projections, not yet wrapped for several workers. Gradients are pruned, buffers
            put back.
        view_shape: C, H, W.
        limit: The largest share of a batch that a worker gets.
        memory: See ``allotted_memory``.

    Raises:
        MemoryError: Not even the smallest micro-batch fits.
        MemoryTakenError: Other processes hold this run's share.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    allowed = (1 - MARGIN) * allotted_memory(device, memory) - _STATE * weights
    before = [buffer.clone() for buffer in model.buffers()]
    norms = [module for module in model.modules() if isinstance(module, GlobalBatchNorm2d)]
    for norm in norms:
        norm.alone = True  # workers may try different sizes
    fits = _fits_on_gpu if device.type == "cuda" else _fits_on_cpu
    taken: MemoryTakenError | None = None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        size = limit
        try:
            while size and not fits(model, view_shape, size, device, autocast, allowed):
                size = 0 if size <= 2 else max(2, math.ceil(size / 2))
        except MemoryTakenError as error:
            taken, size = error, -1
    for norm in norms:
        norm.alone = False
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    model.zero_grad(set_to_none=True)
    if dist.is_initialized():
        agreed = torch.tensor(size, device=device)
        dist.all_reduce(agreed, dist.ReduceOp.MIN)
        size = int(agreed)
    if size < 0:
        raise taken or MemoryTakenError("out of memory: other processes hold what belongs to another worker")
    if not size:
        raise MemoryError(
            f"out of memory: not even {min(limit, 2)} images of {view_shape[1]} x {view_shape[2]} pixels fit into "
            f"{max(allowed, 0) / 2**30:.2f} GiB; use a smaller encoder or smaller images"
        )
    return size


def _fits_on_gpu(
    model: nn.Module,
    view_shape: tuple[int, int, int],
    size: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
    allowed: float,
) -> bool:
    """Tries it. Running out counts only while the share is not held by others."""
    name = f"GPU {device.index or 0} ({torch.cuda.get_device_name(device)})"
    while True:
        try:
            return _peak_on_gpu(model, view_shape, size, device, autocast) <= allowed
        except torch.OutOfMemoryError:
            pass  # and with the error go the tensors that it holds
        finally:
            model.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
        if torch.cuda.mem_get_info(device)[0] >= allowed:
            return False
        _wait_for(lambda: torch.cuda.mem_get_info(device)[0], allowed, name)


def _peak_on_gpu(
    model: nn.Module,
    view_shape: tuple[int, int, int],
    size: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    views = torch.zeros(2 * size, *view_shape, device=device).contiguous(memory_format=torch.channels_last)
    with autocast:
        projections = model(views)
    projections.sum().backward()
    return torch.cuda.max_memory_allocated(device) - start


def _fits_on_cpu(
    model: nn.Module,
    view_shape: tuple[int, int, int],
    size: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
    allowed: float,
) -> bool:
    needed = _BACKWARD * kept_bytes(model, torch.empty(2 * size, *view_shape, device="meta"), autocast)
    if needed > allowed:
        return False
    _wait_for(free_memory, needed, "this machine's memory")
    return True


def _wait_for(free: Callable[[], int], needed: float, where: str) -> None:
    """Waits until ``needed`` bytes are free.

    Raises:
        MemoryTakenError: They are not in time.
    """
    deadline = time.monotonic() + _PATIENCE
    while free() < needed:
        if time.monotonic() > deadline:
            raise MemoryTakenError(
                f"out of memory: {needed / 2**30:.2f} GiB of {where} belong to this run, and {free() / 2**30:.2f} GiB "
                f"are free: other processes hold the rest; end them, or set simclr.micro_batch to fewer images"
            )
        time.sleep(0.5)


def training_bytes(model: nn.Module, view_shape: tuple[int, int, int], size: int) -> int:
    """Bytes that training takes on the CPU, in float32, with ``size`` images in the network at once."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    views = torch.empty(2 * size, *view_shape, device="meta")
    return int((2 + _STATE) * weights + _BACKWARD * kept_bytes(model, views, nullcontext()))


def kept_bytes(model: nn.Module, views: Tensor, autocast: AbstractContextManager[object]) -> int:
    """Bytes that a forward on ``views`` (of the device "meta": nothing is computed) keeps for its backward."""
    tensors = [*model.parameters(), *model.buffers()]
    shadow = copy.deepcopy(model, {id(t): t.detach().to("meta").requires_grad_(t.requires_grad) for t in tensors})
    weights = {id(p) for p in shadow.parameters()}
    kept: dict[int, Tensor] = {}  # by storage: a tensor may be kept several times

    def pack(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        output = shadow(views)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total
