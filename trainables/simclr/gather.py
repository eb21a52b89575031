"""Gathers rows of unequal numbers from all workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def gather_rows(
    rows: Tensor, sizes: Sequence[int] | None, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, int]:
    """Returns all workers' rows in order of rank [sum, d] and the first row of this worker, without gradient.

    Args:
        rows: This worker's rows [n, d]; n may differ between workers.
        sizes: Number of rows of every worker; None: they are gathered, which synchronises with the device.
        group: Process group; None: the default group, or this process alone if there is none.
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
