"""Rows of all workers on each of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def gather_rows(
    rows: Tensor, sizes: Sequence[int] | None, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, int]:
    """All workers' rows, worker after worker [sum, d], and where this worker's begin; without a gradient.

    Args:
        rows: This worker's [n, d]; workers may hold unequal numbers.
        sizes: Rows of every worker, where the caller knows them; None: the workers ask each other, which makes the
            host wait for the device.
        group: The workers; None: all, if torch.distributed is initialised, else this process is alone.
    """
    world = dist.get_world_size(group) if dist.is_initialized() else 1
    if world == 1:
        return rows, 0
    rank = dist.get_rank(group)
    if sizes is None:
        counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device), group=group)
        sizes = torch.cat(counts).tolist()
    padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows)))
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sum(sizes[:rank])
