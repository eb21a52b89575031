"""Chooses the precision for a device and wraps models for data-parallel training."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def computes_in_bfloat16(device: torch.device) -> bool:
    """Returns whether ``device`` supports bfloat16 natively. CPUs without support emulate it several times slower."""
    if device.type != "cpu":
        return True
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def data_parallel(model: nn.Module) -> DistributedDataParallel:
    """Wraps ``model`` so that gradients are averaged over workers. Buffers are not synchronised.

    ``GlobalBatchNorm2d`` keeps them equal on all workers.
    """
    arguments = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in arguments else "broadcast_buffers"  # torch < 2.13
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)
