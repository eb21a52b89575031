"""Broadcasts Python objects from rank 0."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


def broadcast_from_rank0(value: Value | None, device: torch.device) -> Value:
    """Returns rank 0's ``value`` on every worker, because values computed by each may differ by rounding.

    All workers must call it at the same step, with the device of the communication backend.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = [value]
        dist.broadcast_object_list(values, src=0, device=device)
        value = values[0]
    assert value is not None, "rank 0 must provide a value"
    return value
