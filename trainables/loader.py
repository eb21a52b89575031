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
from trainables.settings import TrainingData
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

    def batch(
        self, position: int, batch_size: int, parts: int, *, since: int | None = None
    ) -> list[Callable[[], Tensor]]:
        """This worker's share of the batch of the images from ``position`` (samples seen) on, cut into ``parts``.

        Args:
            position: Of the batch.
            batch_size: Images over all workers.
            parts: To cut the share into.
            since: Position of an earlier batch of this size; those from there on may still be called. None: this one.

        Returns:
            What makes the views of each part, [2m, C, H, W] in channels-last order, the first views of its m images
            before the second ones. Each may be called as often as needed before the next batch is asked for.
        """
        rows = share(batch_size, self.worker, self.workers)
        indices = self.indices(position, batch_size)
        kept = range(position if since is None else since, position + (1 + _BATCHES_AHEAD) * batch_size, batch_size)
        self.feed.prefetch(self.indices(start, batch_size) for start in kept)
        # Drawn for the global batch, from nothing but the seed and the position: the same on any number of workers.
        seed = int(np.random.SeedSequence((self._seed, position)).generate_state(1, np.uint64)[0] >> 1)
        shape = (self.augment.size, self.augment.size)
        draw = self.augment.draw(2 * batch_size, shape, torch.Generator().manual_seed(seed))
        pieces = [share(len(indices), part, parts) for part in range(parts)]
        return [partial(self._views, indices[own], draw, rows.start + own.start, batch_size) for own in pieces]

    def _views(self, indices: Indices, draw: Draw, first: int, batch_size: int) -> Tensor:
        rows = torch.arange(first, first + len(indices))
        images = self.feed.batch(indices).repeat(2, 1, 1, 1)
        both = self.augment.apply(images, draw[torch.cat([rows, batch_size + rows])])
        return both.contiguous(memory_format=torch.channels_last)
