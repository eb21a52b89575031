"""A contrastive step on a batch of any size in the memory of a part of it (GradCache, Gao et al. 2021, section 3).

The loss needs all embeddings at once; only the network's activations do not fit. So every micro-batch is embedded
without a graph, the loss's gradient is taken with respect to the embeddings, and every micro-batch is embedded once
more to carry its part of that gradient into the weights. Plain accumulation of gradients would be another loss: its
negatives come from the micro-batch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def cached_backward(
    model: nn.Module,
    micro_batches: Sequence[Callable[[], Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    autocast: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Adds the gradient of ``loss`` over all micro-batches together to the model's ``.grad``.

    It is the gradient of the direct step, except that batch normalisation takes its statistics from one micro-batch
    (of all workers) at a time: to it the batch is as small as that. Running statistics see every micro-batch once;
    dropout prunes the same in both passes.

    Args:
        model: Views -> projections; ``DistributedDataParallel`` is synchronised once, with the last micro-batch.
        micro_batches: Each makes the views [2m, ...] of m images, the first views of all m before the second ones, and
            is called twice. All workers need equally many.
        loss: Projections of the first and of the second views [b, d] -> a scalar.
        autocast: Under which the model runs.

    Returns:
        The loss's value.
    """
    autocast = autocast or nullcontext()
    network = model.module if isinstance(model, DistributedDataParallel) else model
    before = [buffer.clone() for buffer in network.buffers()]
    random_states, parts = [], []
    with torch.no_grad():
        for views in micro_batches:
            batch = views()
            random_states.append(_random_state(batch.device))
            with autocast:
                parts.append(network(batch).chunk(2))
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)  # the second pass counts

    z_a, z_b = (torch.cat(views).requires_grad_() for views in zip(*parts, strict=True))
    value = loss(z_a, z_b)
    gradients_a, gradients_b = torch.autograd.grad(value, (z_a, z_b))
    sizes = [len(part) for part, _ in parts]
    last = len(sizes) - 1
    for index, gradients in enumerate(zip(gradients_a.split(sizes), gradients_b.split(sizes), strict=True)):
        batch = micro_batches[index]()
        _restore(random_states[index], batch.device)
        waits = isinstance(model, DistributedDataParallel) and index < last
        with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with autocast:
                projections = model(batch)
            projections.backward(torch.cat(gradients))
    return value.detach()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """What dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
