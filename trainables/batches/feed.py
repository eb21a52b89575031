"""Images by index, on the device."""

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
    """Serves batches of images.

    A uint8 array [n, C, H, W] in memory is copied to a GPU once, and a batch is one gather there. On the CPU it stays
    the array it is, which may be read-only shared memory (Ray's object store).

    ``ImageFiles`` are decoded by threads that do nothing else, ahead of time if ``prefetch`` tells them what comes.
    Whatever is prefetched, ``batch`` returns the same.

    Args:
        images: In memory or on disk.
        device: Where the batches are wanted.
    """

    def __init__(self, images: Images | ImageFiles, device: torch.device) -> None:
        self._images, self._device = images, device
        self._ahead: _ReadAhead | None = None
        self._resident: Tensor | None = None
        if isinstance(images, ImageFiles):
            self._ahead = _ReadAhead(images)
        elif device.type != "cpu":
            self._resident = torch.tensor(images, device=device)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def waited(self) -> float:
        """Seconds that ``batch`` has stood still so far because images were not decoded yet; 0 for an array.

        A GPU may have had steps left to compute meanwhile: its own idle time is no longer than this.
        """
        return self._ahead.waited if self._ahead else 0.0

    def prefetch(self, batches: Iterable[Indices]) -> None:
        """Starts to decode these batches, and keeps them for ``batch`` until the next call.

        Name the present batch first, then those that follow: what is not named again is forgotten, hence memory holds
        one decoded copy of what is named. Nothing happens for an array; ``batches`` is not even iterated.
        """
        if self._ahead:
            self._ahead.expect(dict.fromkeys(index for indices in batches for index in indices.tolist()))

    def batch(self, indices: Indices) -> Tensor:
        """int64 [b] -> uint8 [b, C, H, W] on the device. What was not prefetched is decoded now.

        Raises:
            ValueError: A file is missing or holds no readable image; the message names it.
        """
        if self._ahead:
            pinned = self._device.type == "cuda"
            batch = torch.empty((len(indices), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
            for row, image in zip(batch.numpy(), self._ahead.take(indices.tolist()), strict=True):
                row[:] = image
            return batch.to(self._device, non_blocking=True)
        if self._resident is None:
            return torch.from_numpy(self._images[indices])
        rows = torch.from_numpy(indices).pin_memory().to(self._resident.device, non_blocking=True)
        return self._resident[rows]

    def close(self) -> None:
        """Ends the decoders; what they have not begun is left undone. No batch can be had after that."""
        if self._ahead:
            self._ahead.close()


class _ReadAhead:
    """Decodes files in threads before they are needed.

    Images are kept one by one under their indices, so that a changed batch size or share cuts them up again.
    """

    def __init__(self, files: ImageFiles) -> None:
        self.waited = 0.0
        self._files, self._pool = files, files.pool()
        self._expected: dict[int, Future[Images]] = {}

    def expect(self, indices: Iterable[int]) -> None:
        """Starts to decode what is new in ``indices``; prunes what is no longer in it."""
        before = self._expected
        self._expected = {index: before.pop(index) if index in before else self._begin(index) for index in indices}
        for future in before.values():
            future.cancel()

    def take(self, indices: list[int]) -> list[Images]:
        """The decoded images, as soon as there are all of them."""
        started = time.perf_counter()
        others = {index: self._begin(index) for index in set(indices) - self._expected.keys()}
        futures = self._expected | others
        images = [futures[index].result() for index in indices]
        self.waited += time.perf_counter() - started
        return images

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, index: int) -> Future[Images]:
        return self._pool.submit(self._files.decode, index)
