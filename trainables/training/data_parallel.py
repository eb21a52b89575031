"""Wraps models for data-parallel training."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def data_parallel(model: nn.Module) -> DistributedDataParallel:
    """Wraps ``model`` so that gradients are averaged over workers. Buffers are not synchronised.

    ``GlobalBatchNorm2d`` keeps them equal on all workers.
    """
    arguments = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in arguments else "broadcast_buffers"  # torch < 2.13
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)
