"""Compiles functions with ``torch.compile`` and falls back to eager mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns ``function`` compiled with static shapes. If compilation fails, it warns once and runs ``function``.

    Workers may compile different shapes, or one may fail: compiled functions keep the order of their collectives.
    """
    fast: Callable[..., Tensor] | None = torch.compile(function, dynamic=False)

    def call(*args: Any) -> Tensor:
        nonlocal fast
        if fast is not None:
            try:
                # Splitting the graph at DDP's buckets does not support autograd functions, such as our batch norm.
                with torch._dynamo.config.patch(optimize_ddp=False):
                    return fast(*args)
            except torch._dynamo.exc.TorchDynamoException as error:
                fast = None
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"training without torch.compile, which failed: {reason}", stacklevel=2)
        return function(*args)

    return call
