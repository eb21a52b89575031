"""Computes the gradient of a large batch in micro-batches (GradCache, Gao et al. 2021, section 3).

First, every micro-batch is embedded without autograd, and the gradient of the loss with respect to all embeddings is
computed. Then every micro-batch is embedded again, with autograd, to propagate its part of that gradient. Plain
gradient accumulation would compute another loss, because its negatives come from the micro-batch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from trainables.simclr.batchnorm import buffers_restored


def cached_backward(
    model: nn.Module,
    micro_batches: Sequence[Callable[[], Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    autocast: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Adds the gradient of ``loss`` over all micro-batches together to the model's ``.grad``.

    It equals the gradient of a direct step, except that batch normalisation uses the statistics of one micro-batch (of
    all workers) at a time. Running statistics are updated once per micro-batch. Dropout masks are the same in both
    passes.

    Args:
        model: Maps views to projections. ``DistributedDataParallel`` synchronises once, with the last micro-batch.
        micro_batches: Functions that return the views [2m, ...] of m images, the first views of all m before the second
            ones. Each is called twice. The number of micro-batches must be the same on all workers.
        loss: Maps the projections of the first and of the second views [b, d] to a scalar.
        autocast: Autocast context of the model.

    Returns:
        The value of the loss [].
    """
    autocast = autocast or nullcontext()
    network = model.module if isinstance(model, DistributedDataParallel) else model
    random_states, parts = [], []
    with torch.no_grad(), buffers_restored(network):  # the second pass updates them
        for views in micro_batches:
            batch = views()
            random_states.append((torch.get_rng_state(), get_device_states(batch)))
            with autocast:
                parts.append(network(batch).chunk(2))

    z_a, z_b = (torch.cat(views).requires_grad_() for views in zip(*parts, strict=True))
    value = loss(z_a, z_b)
    gradients_a, gradients_b = torch.autograd.grad(value, (z_a, z_b))
    sizes = [len(part) for part, _ in parts]
    last = len(sizes) - 1
    for index, gradients in enumerate(zip(gradients_a.split(sizes), gradients_b.split(sizes), strict=True)):
        batch = micro_batches[index]()
        on_cpu, on_devices = random_states[index]
        torch.set_rng_state(on_cpu)
        set_device_states(*on_devices)
        accumulates = isinstance(model, DistributedDataParallel) and index < last
        with model.no_sync() if accumulates else nullcontext():  # type: ignore[operator]
            with autocast:
                projections = model(batch)
            projections.backward(torch.cat(gradients))
    return value.detach()
