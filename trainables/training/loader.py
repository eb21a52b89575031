"""Loads each worker's shard of every batch, at any batch size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainables.batches import Feed, SampleStream, shard_rows
from trainables.batches.sampling import Indices
from trainables.data import TrainingData
from trainables.simclr.augment import Augment, Draw

#: Batches that are decoded ahead while one is trained on, if images are read from disk.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """One worker's shard of a global batch."""

    indices: Indices  # of the shard's images, int64 [b]
    shard: slice  # rows of the global batch that form the shard
    draw: Draw  # augmentation parameters of its 2b views: the first views of all images, then the second views
    _feed: Feed
    _augment: Augment

    def images(self) -> Tensor:
        """Returns the images on the device, uint8 [b, C, H, W]."""
        return self._feed.batch(self.indices)

    def views(self) -> Tensor:
        """Returns the views, float [2b, C, H, W] in channels-last order. May be called again until the next batch."""
        images = self.images().repeat(2, 1, 1, 1)
        return self._augment.apply(images, self.draw).contiguous(memory_format=torch.channels_last)

    def split(self, parts: int) -> list[Batch]:
        """Splits the shard into ``parts`` micro-batches whose sizes differ by one image at most."""
        if parts == 1:
            return [self]
        count, start = len(self.indices), self.shard.start
        return [
            replace(
                self,
                indices=self.indices[own],
                shard=slice(start + own.start, start + own.stop),
                draw=self.draw[_both_views(own, count)],
            )
            for own in (shard_rows(count, part, parts) for part in range(parts))
        ]


class Loader:
    """Loads the batch at any position of the sample stream, at any batch size.

    Order and augmentation depend on the seed and the position only, not on the number of workers.
    """

    def __init__(self, data: TrainingData, augment: Augment, seed: int, device: torch.device) -> None:
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.augment, self.device, self._seed = augment, device, seed
        self.feed = Feed(data.images, device)
        self.stream = SampleStream(len(data.images), seed, data.epoch_order)

    def shard(self, batch_size: int) -> slice:
        """Returns the rows of a global batch that form this worker's shard."""
        return shard_rows(batch_size, self.rank, self.world_size)

    def shard_sizes(self, batch_size: int) -> list[int]:
        """Returns the number of images in every worker's shard."""
        rows = [shard_rows(batch_size, rank, self.world_size) for rank in range(self.world_size)]
        return [shard.stop - shard.start for shard in rows]

    def indices(self, position: int, batch_size: int) -> Indices:
        """Returns the indices of this worker's shard of the batch at ``position`` (in samples)."""
        return self.stream.take(position, batch_size)[self.shard(batch_size)]

    def batch(self, position: int, batch_size: int, *, since: int | None = None) -> Batch:
        """Returns this worker's shard of the batch at ``position`` and starts to decode the next batches.

        Args:
            position: Position of the batch in the stream, in samples.
            batch_size: Images over all workers.
            since: Position of an earlier batch of the same size from which decoded images are kept; None: ``position``.
        """
        kept = range(position if since is None else since, position + (1 + _BATCHES_AHEAD) * batch_size, batch_size)
        self.feed.prefetch(self.indices(start, batch_size) for start in kept)
        # Drawn for the global batch from the seed and the position: the same for any number of workers.
        seed = int(np.random.SeedSequence((self._seed, position)).generate_state(1, np.uint64)[0] >> 1)
        size = (self.augment.size, self.augment.size)
        draw = self.augment.draw(2 * batch_size, size, torch.Generator().manual_seed(seed))
        shard = self.shard(batch_size)
        if self.world_size > 1:
            draw = draw[_both_views(shard, batch_size)]
        return Batch(self.indices(position, batch_size), shard, draw, self.feed, self.augment)

    def close(self) -> None:
        """Stops the decoders. No batch can be loaded afterwards."""
        self.feed.close()


def _both_views(rows: slice, count: int) -> Tensor:
    """Returns the rows of both views of some of ``count`` images."""
    first = torch.arange(rows.start, rows.stop)
    return torch.cat([first, count + first])
