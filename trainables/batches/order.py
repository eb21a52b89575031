"""The order in which a run sees its images. It depends on the seed, not on the batch size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainables.batches.sampling import Indices

#: Maps an epoch (from 0) to the indices of its images in order, int64 [n].
EpochOrder = Callable[[int], Indices]


class SampleStream:
    """An endless sequence of image indices, one epoch after the other.

    A batch is the next B entries, across the end of an epoch if necessary. Hence no sample is repeated or skipped after
    a change of the batch size, a resume, or a change of the number of workers, and all batches are full. A batch across
    the end of an epoch may hold an image twice (``repeats``); the loss handles this. Preventing it for large batches
    would show the same images together in every epoch.

    Args:
        length: Images per epoch.
        seed: Seed of the shuffled orders.
        epoch_order: Returns the order of an epoch, such as ``partial(stratified_order, strata, seed)``; it must be
            deterministic. None: every epoch is shuffled.
    """

    def __init__(self, length: int, seed: int, epoch_order: EpochOrder | None = None) -> None:
        self.length, self._seed = length, seed
        self._order_of = epoch_order or self._shuffled
        self._orders: dict[int, tuple[Indices, bool]] = {}

    def take(self, position: int, count: int) -> Indices:
        """Returns ``count`` entries from ``position`` (in samples), int64 [count].

        Raises:
            ValueError: ``epoch_order`` returns another number of entries than there are images.
        """
        parts = []
        while count > 0:
            epoch, start = divmod(position, self.length)
            part = self._order(epoch)[0][start : start + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts)

    def repeats(self, position: int, count: int) -> bool:
        """Returns whether an image occurs twice among ``count`` entries from ``position``."""
        epoch, start = divmod(position, self.length)
        if start + count <= self.length and self._order(epoch)[1]:
            return False
        return len(np.unique(self.take(position, count))) < count

    def may_repeat(self, position: int, count: int) -> bool:
        """Returns whether an image can occur twice among them, assuming later epochs are like the last one read."""
        epoch, start = divmod(position, self.length)
        if start + count > self.length:
            return True
        return not (list(self._orders.values())[-1] if self._orders else self._order(epoch))[1]

    def _shuffled(self, epoch: int) -> Indices:
        return np.random.default_rng((self._seed, epoch)).permutation(self.length)

    def _order(self, epoch: int) -> tuple[Indices, bool]:
        """Returns the order of an epoch and whether it holds every image once.

        Two epochs are cached, because both are read around the end of an epoch.
        """
        if epoch in self._orders:
            return self._orders[epoch]
        order = self._order_of(epoch)
        if order.shape != (self.length,):
            raise ValueError(
                f"the epoch order has {len(order):,} entries, but there are {self.length:,} images; use strata of the "
                "same images"
            )
        present = np.zeros(self.length, dtype=np.bool_)
        present[order] = True
        self._orders = {**dict(list(self._orders.items())[-1:]), epoch: (order, bool(present.all()))}
        return self._orders[epoch]


def shard_rows(count: int, rank: int, world_size: int) -> slice:
    """Returns the rows of a global batch of ``count`` in a rank's shard. Shards differ by one row at most."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)
