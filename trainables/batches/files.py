"""Images that stay on disk: known by their paths, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainables.batches.decoding import Images, Pixels, UnreadableImageError, decode
from trainables.batches.sampling import Indices

#: Python's lock is held for about a tenth of an image's decoding, so that more threads than this take turns.
_MAX_DECODERS = 8


class ImageFiles:
    """Image files that look like the uint8 array [n, 3, side, side] that they would make.

    What is held, pickled, and shared by Ray's workers is one array of paths.

    Args:
        paths: Of the files; every machine that reads them must reach them there.
        side: Pixels; the central square of each image is brought to this size.
        decoders: Threads that decode; None: one for each of torch's threads, at most 8.
        pixels: What values and transparency mean; None: see ``Pixels``.
    """

    def __init__(
        self,
        paths: Iterable[str | bytes | os.PathLike[str]],
        side: int,
        *,
        decoders: int | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self._side, self._decoders, self._pixels = side, decoders, pixels or Pixels()

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the decoded images."""
        return len(self), 3, self._side, self._side

    @property
    def nbytes(self) -> int:
        """Of the decoded images."""
        return len(self) * 3 * self._side**2

    def __getitem__(self, some: slice | Indices) -> Images:
        """Decoded images; see ``read``."""
        return self.read(np.arange(len(self))[some])

    def subset(self, indices: Indices) -> ImageFiles:
        """These files in this order, not decoded."""
        return ImageFiles(self._paths[indices], self._side, decoders=self._decoders, pixels=self._pixels)

    def stamps(self) -> Iterator[bytes]:
        """A line for each file that changes with it: path, size and time, and how it is decoded."""
        for path in self._paths.tolist():
            state = Path(os.fsdecode(path)).stat()
            yield f"{path!r} {state.st_size} {state.st_mtime_ns} {self._side} {self._pixels}".encode()

    def listing(self, root: Path) -> Iterator[bytes]:
        """A line for each file, in order, that does not change with a copy of ``root``: relative path and size."""
        for path in self._paths.tolist():
            name = os.path.relpath(path, os.fsencode(root))
            yield b"%r %d\n" % (name, Path(os.fsdecode(path)).stat().st_size)

    def read(self, indices: Indices) -> Images:
        """int64 [b] -> uint8 [b, 3, side, side], decoded by as many threads as there are decoders.

        Raises:
            UnreadableImageError: A file is missing or holds no readable image; the message names it.
        """
        images, unreadable = self.readable(indices)
        for error in unreadable.values():
            raise error
        return images

    def readable(self, indices: Indices) -> tuple[Images, dict[int, UnreadableImageError]]:
        """Decodes like ``read``, but leaves out what cannot be.

        Returns:
            The images that can be decoded, uint8 [r, 3, side, side], and why others cannot, by their place in
            ``indices``.
        """
        images = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)
        unreadable: dict[int, UnreadableImageError] = {}
        with self.pool() as pool:
            for row, image in enumerate(pool.map(self._attempt, indices.tolist())):
                if isinstance(image, UnreadableImageError):
                    unreadable[row] = image
                else:
                    images[row] = image
        return np.delete(images, list(unreadable), axis=0) if unreadable else images, unreadable

    def decode(self, index: int) -> Images:
        """One image, uint8 [3, side, side], decoded in the calling thread. Raises what ``read`` raises."""
        return decode(os.fsdecode(self._paths[index]), self._side, self._pixels)

    def _attempt(self, index: int) -> Images | UnreadableImageError:
        try:
            return self.decode(index)
        except UnreadableImageError as error:
            return error

    def pool(self) -> ThreadPoolExecutor:
        """Threads to decode in. As fast as processes, because PIL decodes and resamples outside Python's lock."""
        decoders = self._decoders or min(torch.get_num_threads(), _MAX_DECODERS)
        # PIL loads its formats on demand, but not safely in several threads at once.
        return ThreadPoolExecutor(decoders, thread_name_prefix="decoder", initializer=Image.init)
