"""Batch normalisation with the statistics of the global batch, on CPUs and GPUs.

``torch.nn.SyncBatchNorm`` does not support CPU tensors. With statistics of each shard, results would depend on the
number of workers, and the network could tell which images share a worker (He et al., MoCo, 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Normalises over all workers of the default process group, whose shards may differ in size.

    With ``alone`` set it behaves as ``nn.BatchNorm2d``, for a model that only one worker evaluates.
    """

    alone = False

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [b, C, H, W] to [b, C, H, W]."""
        if self.alone or not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.running_mean, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        return y  # type: ignore[no-any-return]


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> list[Tensor]:
    """Recomputes a model's running statistics from ``batches`` and sets it to evaluation mode.

    Running statistics lag behind the weights by a number of **steps**, hence by more samples the larger the batch is,
    and an EMA model has none of its own (Izmailov et al. 2018, 3.2). Workers are not synchronised.

    Returns:
        The model's outputs, each batch normalised by its own statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, GlobalBatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.alone, norm.momentum = True, None  # None: the mean over the batches
    model.train()
    outputs = [model(batch) for batch in batches]
    model.eval()
    return outputs


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Restores the buffers of a model, such as running statistics, after a block that is not training."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        # Moments around the running mean, which is equal on all workers: one message, and no cancellation.
        shift = running_mean.clone()
        centred = x.to(shift.dtype) - shift[:, None, None]
        count = centred.new_full((1,), x.numel() / x.shape[1])  # new_tensor would synchronise with the device
        sums = torch.cat(
            [centred.sum((0, 2, 3)), centred.square_().sum((0, 2, 3)), count]
        )  # var_mean is 6 times slower
        dist.all_reduce(sums)
        first, second, count = sums.split([x.shape[1], x.shape[1], 1])
        offset = first / count
        mean, var = shift + offset, second / count - offset**2
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std, count = ctx.saved_tensors
        x, grad = x.to(mean.dtype), grad.to(mean.dtype)
        by_bias = grad.sum((0, 2, 3))
        by_weight = ((grad * x).sum((0, 2, 3)) - mean * by_bias) * inverse_std
        sums = torch.cat([by_bias, by_weight])
        dist.all_reduce(sums)
        mean_grad, mean_grad_normal = (sums / count).chunk(2)
        # weight * inverse_std * (grad - mean_grad - normal * mean_grad_normal), which is affine in grad and in x
        by_grad = weight * inverse_std
        by_input = -by_grad * mean_grad_normal * inverse_std
        constant = -by_grad * mean_grad - by_input * mean
        by_x = torch.addcmul(constant[:, None, None], grad, by_grad[:, None, None])
        by_x.addcmul_(x, by_input[:, None, None])
        return by_x.to(x.dtype), by_weight, by_bias, None, None
