"""The order in which a run sees its images: fixed by the seed alone, whatever the batch size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainables.batches.stratified import Indices, stratified_order


class SampleStream:
    """An endless sequence of image indices: one shuffled epoch after the other.

    A batch is the next B entries, wherever an epoch ends. Hence a change of the batch size, a resume, or another
    number of workers neither repeats nor drops a sample, and no batch is ever short.

    Args:
        length: Images in an epoch.
        seed: Fixes every epoch's order.
        strata: Each image's cluster [length]: every batch then holds every cluster in its share. None: plain shuffling.

    Raises:
        ValueError: ``strata`` are no clusters of so many images.
    """

    def __init__(self, length: int, seed: int, strata: NDArray[np.integer] | None = None) -> None:
        if strata is not None and len(strata) != length:
            raise ValueError(f"{len(strata):,} strata do not fit {length:,} images: give one for each image")
        self.length, self._seed, self._strata = length, seed, strata
        self._epoch = -1
        self._order: Indices = np.empty(0, dtype=np.int64)

    def take(self, position: int, count: int) -> Indices:
        """The entries from ``position`` (images seen so far) on: int64 [count]."""
        parts = []
        while count > 0:
            epoch, start = divmod(position, self.length)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._shuffled(epoch)
            part = self._order[start : start + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts)

    def _shuffled(self, epoch: int) -> Indices:
        if self._strata is not None:
            return stratified_order(self._strata, self._seed, epoch)
        return np.random.default_rng((self._seed, epoch)).permutation(self.length)


def share(count: int, worker: int, workers: int) -> slice:
    """The rows of a global batch of ``count`` that fall to one worker; shares differ by one row at most."""
    return slice(count * worker // workers, count * (worker + 1) // workers)
