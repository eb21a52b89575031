"""The normalised temperature-scaled cross entropy of SimCLR, exact over any number of workers, and its decoupled kin.

    l(i) = -sim(i, p(i)) / tau + log sum_{k != i} exp(sim(i, k) / tau)          (Chen et al. 2020, equation 1)
    l(i) = -sim(i, p(i)) / tau + log sum_{k != i, p(i)} exp(sim(i, k) / tau)    (Yeh et al. 2022, equation 6)

Views of one image are no negatives of each other, also where an image comes twice in a batch.

Each worker scores its own anchors against the columns of all workers, a chunk of rows at a time, and computes the
gradient in the same pass; memory is linear in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainables.simclr.gather import gather_rows

#: Entries of the similarity matrix that are held at a time when no chunk is given; on a CPU, on a GPU: as many as its
#: cores can be kept busy with while the host launches what comes next.
_TILE = (1 << 23, 1 << 26)
#: Below this temperature exp(1 / temperature), summed over a batch, may be too large a float32.
_COLD = 0.02
#: A shorter projection counts as this long (as in ``torch.nn.functional.normalize``).
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
        images: Which image each row shows, whole numbers [b], on every worker or on none. Rows of one image stay apart:
            the other row's views are neither negatives nor positives. None: all images differ, at no cost.
        group: The workers that share the batch; None: all, if torch.distributed is initialised.
        chunk: Anchors per tile; None: as many as fit into a tile of 32 MB, or on a GPU of 256 MB.
        shares: Images of every worker, where the caller knows them; None: the workers ask each other, which makes the
            host wait for the device.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: The views' shapes differ, or the temperature is not above 0.
    """
    return _contrast(z_a, z_b, temperature, weights, images, group, chunk, shares, decoupled=False)


def dcl(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    weights: Tensor | None = None,
    images: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    chunk: int | None = None,
    shares: Sequence[int] | None = None,
) -> Tensor:
    """The decoupled contrastive loss: NT-Xent without the positive pair in the denominator (Yeh et al. 2022).

    The positive's own weight in NT-Xent's gradient shrinks it the more, the smaller the batch is; without it small
    batches lose less. Arguments, result and errors are those of ``nt_xent``. A single image has no negatives, and its
    loss is -inf; with ``images``, an anchor without negatives has its attraction alone.
    """
    return _contrast(z_a, z_b, temperature, weights, images, group, chunk, shares, decoupled=True)


def _contrast(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    weights: Tensor | None,
    images: Tensor | None,
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
        loss: Tensor = _Contrast.apply(z_a, z_b, weights, images, temperature, group, chunk, shares, decoupled)
        return loss


class _Contrast(torch.autograd.Function):
    """Few and large operations: on a GPU, small batches cost what it takes to launch them."""

    @staticmethod
    def forward(
        ctx: Any,
        z_a: Tensor,
        z_b: Tensor,
        weights: Tensor | None,
        images: Tensor | None,
        temperature: float,
        group: dist.ProcessGroup | None,
        chunk: int | None,
        shares: Sequence[int] | None,
        decoupled: bool,
    ) -> Tensor:
        world = dist.get_world_size(group) if dist.is_initialized() else 1
        dtype = torch.float64 if z_a.dtype == torch.float64 else torch.float32
        z = torch.cat([z_a, z_b]).to(dtype)
        lengths = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_(min=_SHORTEST)
        u = z / lengths
        sizes = None if shares is None else [2 * share for share in shares]
        columns, first = gather_rows(u, sizes, group)
        rows, half = len(u), len(u) // 2
        apart = _Apart(first, half, decoupled, images, sizes, group)
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
            apart.drop(tile, start)
            total, normaliser = _exponentials(tile, temperature < _COLD, apart.may_leave_none)
            mine = None if anchor is None else anchor[own]
            loss = loss + _times(normaliser, mine).sum()
            if by_rows is not None:
                scale = 1 / total if mine is None else mine / total  # times the tile: softmax over the columns
                torch.mul(tile @ columns, scale, out=by_rows[own])
                pull = u[own] * scale
                by_columns = tile.T @ pull if by_columns is None else by_columns.addmm_(tile.T, pull)
        if by_rows is not None:
            by_rows.add_(_times(partner, anchor), alpha=-2)  # a positive pair attracts each other, for either anchor
            if by_columns is None:  # a worker without images
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
        if ctx.world > 1:  # other workers' anchors push and pull this worker's columns
            by_columns = by_columns * factor
            dist.all_reduce(by_columns, group=ctx.group)
            by_u = torch.addcmul(by_columns[ctx.first : ctx.first + len(u)], by_rows, factor)
        else:
            by_u = (by_rows + by_columns) * factor
        along = (by_u * u).sum(dim=1, keepdim=True)  # the length of z does not matter
        by_z = torch.addcmul(by_u, along, u, value=-1) / lengths
        return *by_z.chunk(2), *(None,) * 7


class _Apart:
    """Which entries of an anchor's row are no terms of its denominator.

    Args:
        first: Where this worker's columns begin.
        half: This worker's images.
        decoupled: Whether the positive is none either.
        images, sizes, group: See ``nt_xent``; rows of every worker.
    """

    def __init__(
        self,
        first: int,
        half: int,
        decoupled: bool,
        images: Tensor | None,
        sizes: Sequence[int] | None,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._first, self._half, self._decoupled = first, half, decoupled
        self._rows = None if images is None else images.repeat(2)[:, None]
        self._columns = None if self._rows is None else gather_rows(self._rows, sizes, group)[0].T
        #: Whether an anchor's row may be left without a term.
        self.may_leave_none = decoupled and images is not None

    def drop(self, tile: Tensor, start: int) -> None:
        """From the rows from ``start`` on of the similarities."""
        if self._rows is None or self._columns is None:
            tile.diagonal(self._first + start).fill_(-torch.inf)
            if self._decoupled:
                self._fill_partners(tile, start, -torch.inf)
            return
        same = self._rows[start : start + len(tile)] == self._columns
        if not self._decoupled:
            self._fill_partners(same, start, False)
        tile.masked_fill_(same, -torch.inf)

    def _fill_partners(self, tile: Tensor, start: int, value: float) -> None:
        """The first views' partners stand half a share further, the second views' as far back."""
        second = max(self._half - start, 0)
        tile[:second].diagonal(self._first + start + self._half).fill_(value)
        tile[second:].diagonal(self._first + start + min(second, len(tile)) - self._half).fill_(value)


def _exponentials(tile: Tensor, cold: bool, may_be_empty: bool) -> tuple[Tensor, Tensor]:
    """Replaces a tile's entries by their exponentials; with ``cold``, of what they are below their row's largest.

    Returns:
        The sums over each row [rows, 1], and the logarithms of the sums without that reduction. For a row without a
        term, if there may be one: 1 and 0.
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
