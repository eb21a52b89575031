"""Limits the memory of a run and of its process."""

from __future__ import annotations

import os

import torch

from trainables.training.host_memory import address_space_left, resident_memory, total_memory

#: Fraction of the memory that is kept free for fragmentation and workspaces of libraries.
MARGIN = 0.1

#: Environment of a worker process that makes training on a CPU 1.2 to 1.3 times faster (benchmarks/README.md). By
#: default glibc returns large blocks to the system and gets them again, zeroed page by page, in every step. With these
#: values it keeps them, and the process stays as large as its largest step.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_ARENA_MAX": "1",
}

#: Environment of a worker process whose threads share cores with other programs: threads that wait for each other yield
#: their core soon. With libgomp's default they spin for milliseconds, which costs nothing on idle cores, but training
#: with two threads beside busy programs was more than ten times slower than with one.
SHORT_SPIN = {"GOMP_SPINCOUNT": "1000"}

#: Bytes of GPU memory that CUDA's context and libraries use besides tensors: 767 MiB on an H200.
CONTEXT = 1 << 30


def share_gpu(device: torch.device, fraction: float) -> None:
    """Limits this process to ``fraction`` of a GPU's memory, CUDA's context included."""
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(max(fraction - CONTEXT / total, 0.0), device)


def allotted_memory(device: torch.device, memory: int | None = None) -> int:
    """Returns the bytes that the run may still allocate on ``device``, whatever other processes use.

    On a GPU, ``share_gpu`` sets the limit. On the CPU it is ``memory``, but no more than this process may map. By
    default it is the fraction of the total memory that corresponds to the cores that torch uses.
    """
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        return int(torch.cuda.get_per_process_memory_fraction(device) * total) - torch.cuda.memory_allocated(device)
    if memory is None:
        fraction = min(torch.get_num_threads() / (os.cpu_count() or 1), 1.0)
        memory = int(total_memory() * fraction) - resident_memory()
    left = address_space_left()
    return memory if left is None else min(memory, left // 2)  # threads map more than they use
