"""NT-Xent, the contrastive loss of SimCLR, and DCL, its decoupled variant, over the global batch of all workers.

    l(i) = -sim(i, p(i)) / tau + log sum_{k != i} exp(sim(i, k) / tau)          (Chen et al. 2020, equation 1)
    l(i) = -sim(i, p(i)) / tau + log sum_{k != i, p(i)} exp(sim(i, k) / tau)    (Yeh et al. 2022, equation 6)

Views of one image are never negatives of each other, even if the image occurs twice in a batch.

Each worker compares its own anchors with the projections of all workers, a chunk of rows at a time, and computes the
gradient in the same pass. Memory is linear in the batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainables.simclr.gather import gather_rows

#: Entries of a tile of the similarity matrix, on a CPU and on a GPU, if no chunk is given.
_TILE = (1 << 23, 1 << 26)
#: Below this temperature the sum of exp(1 / temperature) over a batch may overflow in float32.
_COLD = 0.02
#: Lower bound of a projection's length (as in ``torch.nn.functional.normalize``).
_SHORTEST = 1e-12


def nt_xent(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    weights: Tensor | None = None,
    images: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    chunk: int | None = None,
    shard_sizes: Sequence[int] | None = None,
    decoupled: bool = False,
) -> Tensor:
    """Returns the NT-Xent loss of two views of the same images, the mean over the 2B anchors of the global batch.

    Every worker gets the value of the global loss. The **mean** of the workers' gradients, which
    ``DistributedDataParallel`` computes, is the gradient of the global loss, even if shards differ in size.

    Args:
        z_a: Projections of the first views [b, d] of this worker's shard, not normalised.
        z_b: Projections of the second views of the same images [b, d].
        temperature: tau, above 0.
        weights: A weight per image [b], not negative; multiplies the image's two anchors and is normalised to mean 1
            over the global batch. None: all equal.
        images: Index of the image in each row, integers [b], on all workers or on none. Views of the same image in
            different rows are neither negatives nor positives. None: all images differ.
        group: Process group of the workers; None: the default group, if torch.distributed is initialised.
        chunk: Anchors per tile; None: as many as fit into a tile of 32 MB, or 256 MB on a GPU.
        shard_sizes: Number of images of every worker; None: they are gathered, which synchronises with the device.
        decoupled: Whether the positive pair is left out of the denominator; see ``dcl``.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: The views' shapes differ, or the temperature is not above 0.
    """
    if z_a.shape != z_b.shape or z_a.ndim != 2:
        raise ValueError(f"the views' shapes must be equal [b, d], not {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be above 0")
    options = weights, images, group, chunk, shard_sizes, decoupled
    with torch.autocast(z_a.device.type, enabled=False):
        loss: Tensor = _Contrast.apply(z_a, z_b, temperature, *options)
        return loss


def dcl(z_a: Tensor, z_b: Tensor, temperature: float, **options: Any) -> Tensor:
    """Returns the decoupled contrastive loss: NT-Xent without the positive pair in the denominator (Yeh et al. 2022).

    In NT-Xent the positive pair in the denominator reduces the gradient, more so in small batches. Options, return
    value and errors are those of ``nt_xent``. The loss of a single image is -inf, because there are no negatives. With
    ``images``, only the positive term remains for an anchor without negatives.
    """
    return nt_xent(z_a, z_b, temperature, decoupled=True, **options)


class _Contrast(torch.autograd.Function):
    """Computes loss and gradient in few large operations, because small batches are bound by kernel launches."""

    @staticmethod
    def forward(
        ctx: Any,
        z_a: Tensor,
        z_b: Tensor,
        temperature: float,
        weights: Tensor | None,
        images: Tensor | None,
        group: dist.ProcessGroup | None,
        chunk: int | None,
        shard_sizes: Sequence[int] | None,
        decoupled: bool,
    ) -> Tensor:
        world = dist.get_world_size(group) if dist.is_initialized() else 1
        dtype = torch.float64 if z_a.dtype == torch.float64 else torch.float32
        z = torch.cat([z_a, z_b]).to(dtype)
        lengths = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_(min=_SHORTEST)
        u = z / lengths
        sizes = None if shard_sizes is None else [2 * size for size in shard_sizes]
        columns, first = gather_rows(u, sizes, group)
        rows, half = len(u), len(u) // 2
        image = None if images is None else images.repeat(2)[:, None]
        mask = _Mask(first, half, decoupled, image, None if image is None else gather_rows(image, sizes, group)[0].T)
        partner = u.roll(half, 0)
        anchor = None if weights is None else weights.detach().to(dtype).repeat(2)[:, None]  # [rows, 1]
        loss = (_times(u, anchor) * partner).sum() / -temperature
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        by_rows = torch.empty_like(u) if needs_grad else None
        by_columns: Tensor | None = None
        scaled = u / temperature
        chunk = chunk or max(1, min(rows, _TILE[z.is_cuda] // len(columns)))
        for start in range(0, rows, chunk):
            own = slice(start, min(start + chunk, rows))
            tile = scaled[own] @ columns.T
            mask.apply(tile, start)
            total, normaliser = _exponentials(tile, temperature < _COLD, decoupled and images is not None)
            mine = None if anchor is None else anchor[own]
            loss = loss + _times(normaliser, mine).sum()
            if by_rows is not None:
                scale = 1 / total if mine is None else mine / total  # times the tile: softmax over the columns
                torch.mul(tile @ columns, scale, out=by_rows[own])
                pull = u[own] * scale
                by_columns = tile.T @ pull if by_columns is None else by_columns.addmm_(tile.T, pull)
        if by_rows is not None:
            by_rows.add_(_times(partner, anchor), alpha=-2)  # each of a pair is an anchor once
            if by_columns is None:  # an empty shard
                by_columns = torch.zeros_like(columns)
        count: Tensor | float = rows if anchor is None else anchor.sum()
        if world > 1:
            sums = torch.stack([loss, count if isinstance(count, Tensor) else loss.new_full((), count)])
            dist.all_reduce(sums, group=group)
            loss, count = sums.unbind()
        ctx.group, ctx.world, ctx.first, ctx.factor = group, world, first, world / (count * temperature)
        ctx.save_for_backward(u, lengths, by_rows, by_columns)
        mean: Tensor = loss / count
        return mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, lengths, by_rows, by_columns = ctx.saved_tensors
        factor = grad * ctx.factor
        if ctx.world > 1:  # gradients with respect to this worker's columns from all workers' anchors
            by_columns = by_columns * factor
            dist.all_reduce(by_columns, group=ctx.group)
            by_u = torch.addcmul(by_columns[ctx.first : ctx.first + len(u)], by_rows, factor)
        else:
            by_u = (by_rows + by_columns) * factor
        along = (by_u * u).sum(dim=1, keepdim=True)  # the loss does not depend on the length of z
        by_z = torch.addcmul(by_u, along, u, value=-1) / lengths
        return *by_z.chunk(2), *(None,) * 7


@dataclass
class _Mask:
    """Masks entries of the similarity matrix that are not in an anchor's denominator."""

    first: int  # first column of this worker
    half: int  # number of this worker's images
    decoupled: bool  # whether the positive pair is masked too
    rows: Tensor | None  # image of each row [rows, 1]
    columns: Tensor | None  # image of each column [1, columns]

    def apply(self, tile: Tensor, start: int) -> None:
        """Masks a tile whose first row is ``start``."""
        if self.rows is None or self.columns is None:
            tile.diagonal(self.first + start).fill_(-torch.inf)
            if self.decoupled:
                self._fill_partners(tile, start, -torch.inf)
            return
        same = self.rows[start : start + len(tile)] == self.columns
        if not self.decoupled:
            self._fill_partners(same, start, False)
        tile.masked_fill_(same, -torch.inf)

    def _fill_partners(self, tile: Tensor, start: int, value: float) -> None:
        """Fills the positive pairs' entries: ``half`` columns to the right for first views, to the left for second."""
        second = max(self.half - start, 0)
        tile[:second].diagonal(self.first + start + self.half).fill_(value)
        tile[second:].diagonal(self.first + start + min(second, len(tile)) - self.half).fill_(value)


def _exponentials(tile: Tensor, cold: bool, may_be_empty: bool) -> tuple[Tensor, Tensor]:
    """Replaces a tile's entries by their exponentials, with ``cold`` after subtracting the row's maximum.

    Returns:
        The sum of each row [rows, 1], and the logarithm of the sum without the subtraction. If ``may_be_empty``, they
        are 1 and 0 for a row whose entries are all masked.
    """
    largest: Tensor | None = None
    if cold:
        largest = tile.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(tile.dtype).min)  # -inf: no negatives
        tile.sub_(largest)
    total = tile.exp_().sum(dim=1, keepdim=True)
    empty = total == 0 if may_be_empty else None
    if empty is not None:
        total = total + empty
    logarithm = total.log() if largest is None else total.log() + largest
    return total, logarithm if empty is None else logarithm.masked_fill(empty, 0.0)


def _times(values: Tensor, factors: Tensor | None) -> Tensor:
    return values if factors is None else values * factors
