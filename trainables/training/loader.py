"""A worker's share of every batch, in two augmented views, whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainables.batches import Feed, SampleStream, share
from trainables.batches.sampling import Indices
from trainables.data import TrainingData
from trainables.simclr.augment import Augment, Draw

#: Batches that are decoded while one trains, where images are read from disk.
_BATCHES_AHEAD = 2


class Loader:
    """Serves the batch at any position of the stream at any size: a swap to another size has nothing to set up.

    Order and augmentation follow from the seed and the position alone, so the number of workers changes nothing.

    Args:
        data: Images.
        augment: Makes views.
        seed: Of order and augmentation.
        device: Where views are wanted.
    """

    def __init__(self, data: TrainingData, augment: Augment, seed: int, device: torch.device) -> None:
        self.worker, self.workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.augment, self._seed = augment, seed
        self.feed = Feed(data.images, device)
        self.stream = SampleStream(len(data.images), seed, data.epoch_order)

    def shares(self, batch_size: int) -> list[int]:
        """How many images of a batch each worker gets."""
        rows = [share(batch_size, worker, self.workers) for worker in range(self.workers)]
        return [part.stop - part.start for part in rows]

    def indices(self, position: int, batch_size: int) -> Indices:
        """This worker's share of the batch of the images from ``position`` (samples seen) on."""
        return self.stream.take(position, batch_size)[share(batch_size, self.worker, self.workers)]

    def ingredients(self, position: int, batch_size: int, *, since: int | None = None) -> tuple[Indices, Draw]:
        """This worker's share of the batch of the images from ``position`` (samples seen) on: m images, and what is
        drawn for their 2m views, the first views of all before the second ones.

        Args:
            position: Of the batch.
            batch_size: Images over all workers.
            since: Position of an earlier batch of this size; those from there on stay decoded. None: this one.
        """
        kept = range(position if since is None else since, position + (1 + _BATCHES_AHEAD) * batch_size, batch_size)
        self.feed.prefetch(self.indices(start, batch_size) for start in kept)
        # Drawn for the global batch, from nothing but the seed and the position: the same on any number of workers.
        seed = int(np.random.SeedSequence((self._seed, position)).generate_state(1, np.uint64)[0] >> 1)
        shape = (self.augment.size, self.augment.size)
        draw = self.augment.draw(2 * batch_size, shape, torch.Generator().manual_seed(seed))
        if self.workers > 1:
            draw = draw[_both(share(batch_size, self.worker, self.workers), batch_size)]
        return self.indices(position, batch_size), draw

    def batch(
        self, position: int, batch_size: int, parts: int, *, since: int | None = None
    ) -> list[Callable[[], Tensor]]:
        """The share of ``ingredients``, cut into ``parts``.

        Returns:
            What makes the views of each part, [2m, C, H, W] in channels-last order, the first views of its m images
            before the second ones. Each may be called as often as needed before the next batch is asked for.
        """
        indices, draw = self.ingredients(position, batch_size, since=since)
        if parts == 1:
            return [partial(self._views, indices, draw)]
        pieces = [share(len(indices), part, parts) for part in range(parts)]
        return [partial(self._views, indices[own], draw[_both(own, len(indices))]) for own in pieces]

    def _views(self, indices: Indices, draw: Draw) -> Tensor:
        images = self.feed.batch(indices).repeat(2, 1, 1, 1)
        return self.augment.apply(images, draw).contiguous(memory_format=torch.channels_last)


def _both(rows: slice, count: int) -> Tensor:
    """The rows of both views of some of ``count`` images."""
    first = torch.arange(rows.start, rows.stop)
    return torch.cat([first, count + first])
