"""How much memory is left, and the largest micro-batch that fits into it."""

from __future__ import annotations

import copy
import gc
import math
import os
import re
import resource
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainables.simclr.batchnorm import GlobalBatchNorm2d

#: The share of the memory that stays free: fragmentation, libraries' workspaces, a larger picture now and then.
MARGIN = 0.1

#: Bytes of optimizer state and communication buckets that come on top of the first step's, per byte of weights.
_STATE = 3

#: Peak of forward and backward on the CPU, per byte that the forward keeps: 1.05 to 1.12 were measured on residual
#: networks (widths 16 and 64, batches of 256 and 1,024).
_BACKWARD = 1.2

#: For the environment of a worker's process, before it starts: 1.2 to 1.3 times the training speed on a CPU
#: (benchmarks/README.md). glibc gives every large block back to the system and gets it anew, page by page and zeroed,
#: in every step; so it keeps them, for all threads together, and the process stays as large as its largest step.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_ARENA_MAX": "1",
}

#: Where a container's limit and use stand: version 2, version 1.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def available_memory(device: torch.device) -> int:
    """Bytes that this process may still take on ``device``, to the knowledge of the system.

    On a GPU, what others have taken and ``torch.cuda.set_per_process_memory_fraction`` count. On the CPU it is the
    least of the machine's, the container's and the process's limits, times the share of the cores that torch uses:
    several runs on one machine share both.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allowed = torch.cuda.get_per_process_memory_fraction(device.index) * total - torch.cuda.memory_reserved(device)
        return int(min(free, allowed)) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    share = min(torch.get_num_threads() / (os.cpu_count() or 1), 1.0)
    return int(machine_memory() * share)


def machine_memory() -> int:
    """Bytes left of the least of the machine's, the container's and the process's limits."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux: all that there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = [int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1]) * 1024]  # type: ignore[index]
    for folder, limit, used in _CGROUPS:
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()).isdigit():
            left.append(int(text) - int((folder / used).read_text()))
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        left.append(address_space - pages * resource.getpagesize())
    return max(min(left), 0)


def largest_micro_batch(
    model: nn.Module,
    view_shape: tuple[int, int, int],
    limit: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
) -> int:
    """Images in two views whose forward and backward fit into memory: ``limit``, or what halving it leads to.

    A GPU tries. On the CPU, where too much memory gets a process killed, the need is computed from what a forward
    keeps for its backward. All workers agree on the smallest.

    Args:
        model: Views [2m, C, H, W] -> projections, not yet wrapped for several workers. Gradients are dropped, buffers
            put back.
        view_shape: C, H, W.
        limit: The largest share of a batch that a worker gets.

    Raises:
        MemoryError: Not even the smallest micro-batch fits.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    allowed = (1 - MARGIN) * available_memory(device) - _STATE * weights
    before = [buffer.clone() for buffer in model.buffers()]
    norms = [module for module in model.modules() if isinstance(module, GlobalBatchNorm2d)]
    for norm in norms:
        norm.alone = True  # workers may try different sizes
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        size = limit
        while not _fits(model, view_shape, size, device, autocast, allowed):
            size = 0 if size <= 2 else max(2, math.ceil(size / 2))
            if not size:
                break
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
    if not size:
        raise MemoryError(
            f"out of memory: not even {min(limit, 2)} images of {view_shape[1]} x {view_shape[2]} pixels fit into "
            f"{max(allowed, 0) / 2**30:.2f} GiB; use a smaller encoder or smaller images"
        )
    return size


def _fits(
    model: nn.Module,
    view_shape: tuple[int, int, int],
    size: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
    allowed: float,
) -> bool:
    if device.type != "cuda":
        return _BACKWARD * kept_bytes(model, torch.empty(2 * size, *view_shape, device="meta"), autocast) <= allowed
    try:
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        views = torch.zeros(2 * size, *view_shape, device=device).contiguous(memory_format=torch.channels_last)
        with autocast:
            projections = model(views)
        projections.sum().backward()
        return torch.cuda.max_memory_allocated(device) - start <= allowed
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()


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
