"""The normalised temperature-scaled cross entropy of SimCLR, exact over any number of workers, and its decoupled kin.

    l(i) = -sim(i, p(i)) / tau + log sum_{k != i} exp(sim(i, k) / tau)          (Chen et al. 2020, equation 1)
    l(i) = -sim(i, p(i)) / tau + log sum_{k != i, p(i)} exp(sim(i, k) / tau)    (Yeh et al. 2022, equation 6)

Each worker scores its own anchors against the columns of all workers, a chunk of rows at a time, and computes the
gradient in the same pass; memory is linear in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainables.simclr.gather import gather_rows

#: Entries of the similarity matrix that are held at a time when no chunk is given.
_TILE = 1 << 23


def nt_xent(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    weights: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    chunk: int | None = None,
    shares: Sequence[int] | None = None,
) -> Tensor:
    """The loss of two views of the same images, the mean over the 2B anchors of the global batch.

    With several workers every worker gets the global loss's value, and a gradient whose **mean** over workers
    (``DistributedDataParallel``'s) is the gradient of the global loss, also when workers hold unequal shares.

    Args:
        z_a: Projections of the first views [b, d], not yet normalised; this worker's images only.
        z_b: Projections of the second views of the same images [b, d].
        temperature: tau, above 0.
        weights: A weight per image [b], not negative; multiplies the image's two anchors and is normalised to mean 1
            over the global batch. None: all equal.
        group: The workers that share the batch; None: all, if torch.distributed is initialised.
        chunk: Anchors per tile; None: as many as fit into a tile of about 8 million similarities.
        shares: Images of every worker, where the caller knows them; None: the workers ask each other, which makes the
            host wait for the device.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: The views' shapes differ, or the temperature is not above 0.
    """
    return _contrast(z_a, z_b, temperature, weights, group, chunk, shares, decoupled=False)


def dcl(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    weights: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    chunk: int | None = None,
    shares: Sequence[int] | None = None,
) -> Tensor:
    """The decoupled contrastive loss: NT-Xent without the positive pair in the denominator (Yeh et al. 2022).

    The positive's own weight in NT-Xent's gradient shrinks it the more, the smaller the batch is; without it small
    batches lose less. Arguments, result and errors are those of ``nt_xent``; a single image has no negatives, and its
    loss is -inf.
    """
    return _contrast(z_a, z_b, temperature, weights, group, chunk, shares, decoupled=True)


def _contrast(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    weights: Tensor | None,
    group: dist.ProcessGroup | None,
    chunk: int | None,
    shares: Sequence[int] | None,
    *,
    decoupled: bool,
) -> Tensor:
    if z_a.shape != z_b.shape or z_a.ndim != 2:
        raise ValueError(f"the views' shapes must be equal [b, d], not {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be above 0")
    with torch.autocast(z_a.device.type, enabled=False):
        dtype = torch.float64 if z_a.dtype == torch.float64 else torch.float32
        z = F.normalize(torch.cat([z_a, z_b]).to(dtype), dim=1)
        anchor_weights = None if weights is None else weights.to(dtype).detach().repeat(2)
        loss: Tensor = _Contrast.apply(z, anchor_weights, temperature, group, chunk, shares, decoupled)
        return loss


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weights: Tensor | None,
        temperature: float,
        group: dist.ProcessGroup | None,
        chunk: int | None,
        shares: Sequence[int] | None,
        decoupled: bool,
    ) -> Tensor:
        world = dist.get_world_size(group) if dist.is_initialized() else 1
        columns, first = gather_rows(z, None if shares is None else [2 * share for share in shares], group)
        rows, half = len(z), len(z) // 2
        anchor = torch.ones(rows, dtype=z.dtype, device=z.device) if weights is None else weights
        partner = z.roll(half, 0)
        loss = -torch.dot(anchor, (z * partner).sum(dim=1)) / temperature
        needs_grad = ctx.needs_input_grad[0]
        by_rows = torch.empty_like(z) if needs_grad else None
        by_columns = torch.zeros_like(columns) if needs_grad else None
        chunk = chunk or max(1, min(rows, _TILE // len(columns)))
        for start in range(0, rows, chunk):
            own = slice(start, min(start + chunk, rows))
            tile = (z[own] / temperature) @ columns.T
            tile.diagonal(first + start).fill_(-torch.inf)
            if decoupled:  # the first view's partners stand half a share further, the second's as far back
                second = max(half - start, 0)
                tile[:second].diagonal(first + start + half).fill_(-torch.inf)
                tile[second:].diagonal(first + start + min(second, len(tile)) - half).fill_(-torch.inf)
            # log sum exp in place: no second tile, and half the passes over this one
            largest = tile.amax(dim=1).clamp(min=torch.finfo(tile.dtype).min)  # -inf: it has no negatives
            total = tile.sub_(largest[:, None]).exp_().sum(dim=1)
            loss = loss + torch.dot(anchor[own], total.log() + largest)
            if by_rows is not None and by_columns is not None:
                scale = (anchor[own] / total)[:, None]  # times the tile: the softmax over the anchor's columns
                torch.mul(tile @ columns, scale, out=by_rows[own])
                by_columns.addmm_(tile.T, z[own] * scale)
        if by_rows is not None:  # a positive pair attracts each other, once for either anchor
            by_rows.addcmul_(partner, anchor[:, None], value=-2)
        sums = torch.stack([loss, anchor.sum()])
        if world > 1:
            dist.all_reduce(sums, group=group)
        ctx.scale = (world / (sums[1] * temperature)) if needs_grad else None
        ctx.group, ctx.world, ctx.first = group, world, first
        ctx.save_for_backward(by_rows, by_columns)
        return sums[0] / sums[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_rows, by_columns = ctx.saved_tensors
        by_columns = by_columns * grad
        if ctx.world > 1:  # other workers' anchors push and pull this worker's columns
            dist.all_reduce(by_columns, group=ctx.group)
        own = by_columns[ctx.first : ctx.first + len(by_rows)]
        return (by_rows * grad + own) * ctx.scale, *(None,) * 6
