"""Compiles functions with ``torch.compile`` and falls back to eager mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Shapes of which a function is compiled at most; dynamo stops after 8.
_SHAPES = 64


class Compiled:
    """Calls ``function`` compiled with static shapes. If compilation fails, warns once and calls ``function``."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._fast: Callable[..., Tensor] = torch.compile(function, dynamic=False)
        self.failed = False

    def __call__(self, *args: Any) -> Tensor:
        if not self.failed:
            try:
                # One graph, also inside DDP, and no shape for which dynamo silently uses eager mode.
                with torch._dynamo.config.patch(
                    optimize_ddp=False, recompile_limit=_SHAPES, fail_on_recompile_limit_hit=True
                ):
                    return self._fast(*args)
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                self.failed = True
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"training without torch.compile, which failed: {reason}", stacklevel=2)
        return self._function(*args)
