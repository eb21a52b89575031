"""Functions compiled into fused kernels, where there is a compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.compile`` for one shape of the inputs at a time, or the function itself where that fails.

    Args:
        function: Tensors -> a tensor; a module is one.
    """
    fast: Callable[..., Tensor] | None = torch.compile(function, dynamic=False)

    def call(*args: Any) -> Tensor:
        nonlocal fast
        if fast is not None:
            try:
                return fast(*args)
            except torch._dynamo.exc.TorchDynamoException as error:
                fast = None
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"trains without torch.compile, which fails here: {reason}", stacklevel=2)
        return function(*args)

    return call
