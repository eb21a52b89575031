"""Wraps models for data-parallel training."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.training.compile import Compiled


class Replica(nn.Module):
    """Maps inputs with a worker's replica of a model or, with ``fast``, with its compiled version if there is one.

    The model inside ``DistributedDataParallel`` is compiled, as PyTorch recommends, not ``DistributedDataParallel``.
    """

    compiled: Compiled | None = None  # not a module: its weights are the model's

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, *, fast: bool = False) -> Tensor:
        """Maps inputs [b, ...] to the model's outputs."""
        run = self.compiled if fast and self.compiled is not None else self.model
        outputs: Tensor = run(inputs)
        return outputs


def data_parallel(model: nn.Module) -> DistributedDataParallel:
    """Wraps a ``Replica`` of ``model`` so that gradients are averaged over workers. Buffers are not synchronised.

    ``GlobalBatchNorm2d`` keeps them equal on all workers.
    """
    arguments = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in arguments else "broadcast_buffers"  # torch < 2.13
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(Replica(model), gradient_as_bucket_view=True, **options)
