"""The order in which a run sees its images: fixed by the seed alone, whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainables.batches.sampling import Indices

#: Epoch, from 0 on -> the indices of its images in order, int64 [n].
EpochOrder = Callable[[int], Indices]


class SampleStream:
    """An endless sequence of image indices: one epoch after the other.

    A batch is the next B entries, wherever an epoch ends. Hence a change of the batch size, a resume, or another
    number of workers neither repeats nor prunes a sample, and no batch is ever short. A batch over an epoch's end may
    hold an image twice (``repeats``), which is the loss's business: an order that prevents it for large batches shows
    the same images together in every epoch.

    Args:
        length: Images in an epoch.
        seed: Fixes every epoch's order, if they are shuffled.
        epoch_order: The orders, such as ``partial(stratified_order, strata, seed)``; None: each epoch is shuffled.
            It is asked once an epoch, and must always give the same.
    """

    def __init__(self, length: int, seed: int, epoch_order: EpochOrder | None = None) -> None:
        self.length, self._seed = length, seed
        self._order_of = epoch_order or self._shuffled
        self._orders: dict[int, tuple[Indices, bool]] = {}

    def take(self, position: int, count: int) -> Indices:
        """The entries from ``position`` (images seen so far) on: int64 [count].

        Raises:
            ValueError: ``epoch_order`` gives another number of entries than an epoch has images.
        """
        parts = []
        while count > 0:
            epoch, start = divmod(position, self.length)
            part = self._order(epoch)[0][start : start + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts)

    def repeats(self, position: int, count: int) -> bool:
        """Whether an image comes twice among ``count`` entries from ``position`` on."""
        epoch, start = divmod(position, self.length)
        if start + count <= self.length and self._order(epoch)[1]:
            return False
        return len(np.unique(self.take(position, count))) < count

    def may_repeat(self, position: int, count: int) -> bool:
        """Whether an image can come twice among them, without a look at epochs to come: they are like the last one."""
        epoch, start = divmod(position, self.length)
        if start + count > self.length:
            return True
        return not (list(self._orders.values())[-1] if self._orders else self._order(epoch))[1]

    def _shuffled(self, epoch: int) -> Indices:
        return np.random.default_rng((self._seed, epoch)).permutation(self.length)

    def _order(self, epoch: int) -> tuple[Indices, bool]:
        """Of this epoch, and whether it holds every image once.

        Two are kept: at an epoch's end one looks ahead into the next, and comes back.
        """
        if epoch in self._orders:
            return self._orders[epoch]
        order = self._order_of(epoch)
        if order.shape != (self.length,):
            raise ValueError(
                f"an order of {len(order):,} entries does not fit {self.length:,} images: clusters of other images?"
            )
        present = np.zeros(self.length, dtype=np.bool_)
        present[order] = True
        self._orders = {**dict(list(self._orders.items())[-1:]), epoch: (order, bool(present.all()))}
        return self._orders[epoch]


def shard_rows(count: int, rank: int, world_size: int) -> slice:
    """The rows of a global batch of ``count`` that fall to one worker; shares differ by one row at most."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)
