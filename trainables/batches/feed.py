"""Loads images by index onto the device."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future

import torch
from torch import Tensor

from trainables.batches.decoding import Images
from trainables.batches.files import ImageFiles
from trainables.batches.sampling import Indices


class Feed:
    """Loads batches of images.

    A uint8 array [n, C, H, W] in memory is copied to a GPU once; a batch is then gathered there. On the CPU the array
    is not copied. It may be read-only shared memory (Ray's object store).

    ``ImageFiles`` are decoded by threads, ahead of time if ``prefetch`` is called.
    """

    def __init__(self, images: Images | ImageFiles, device: torch.device) -> None:
        #: Seconds that ``batch`` has waited for images to be decoded; 0 for an array. This is an upper bound of a GPU's
        #: idle time, because it may have been computing meanwhile.
        self.waited = 0.0
        self._images, self._device = images, device
        self._pool = images.pool() if isinstance(images, ImageFiles) else None
        self._expected: dict[int, Future[Images]] = {}  # by index, so that the batch size may change
        self._resident = None if self._pool or device.type == "cpu" else torch.tensor(images, device=device)

    def prefetch(self, batches: Iterable[Indices]) -> None:
        """Starts to decode these batches and keeps them until the next call.

        Pass the current batch first, then the next ones. Images that are not in ``batches`` are discarded. For an array
        nothing is done, and ``batches`` is not iterated.
        """
        if self._pool is None:
            return
        before, wanted = self._expected, dict.fromkeys(index for indices in batches for index in indices.tolist())
        self._expected = {index: before.pop(index) if index in before else self._begin(index) for index in wanted}
        for future in before.values():
            future.cancel()

    def batch(self, indices: Indices) -> Tensor:
        """Returns the images of ``indices`` [b], uint8 [b, C, H, W] on the device. Decodes what was not prefetched.

        Raises:
            UnreadableImageError: A file is missing or cannot be decoded; the message names it.
        """
        if self._pool is not None:
            return self._decoded(indices.tolist())
        if self._resident is None:
            return torch.from_numpy(self._images[indices])
        rows = torch.from_numpy(indices).pin_memory().to(self._resident.device, non_blocking=True)
        return self._resident[rows]

    def close(self) -> None:
        """Stops the decoders and cancels waiting work. No batch can be loaded afterwards."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _begin(self, index: int) -> Future[Images]:
        assert self._pool is not None
        assert isinstance(self._images, ImageFiles)
        return self._pool.submit(self._images.decode, index)

    def _decoded(self, indices: list[int]) -> Tensor:
        started = time.perf_counter()
        others = {index: self._begin(index) for index in set(indices) - self._expected.keys()}
        futures = self._expected | others
        images = [futures[index].result() for index in indices]
        self.waited += time.perf_counter() - started
        pinned = self._device.type == "cuda"
        batch = torch.empty((len(indices), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        for row, image in zip(batch.numpy(), images, strict=True):
            row[:] = image
        return batch.to(self._device, non_blocking=True)
