"""Image files on disk, decoded on access."""

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

#: Decoding holds Python's global lock for about a tenth of the time, so that more threads would wait for it.
_MAX_DECODERS = 8


class ImageFiles:
    """Represents image files as a uint8 array [n, 3, side, side] that is decoded on access.

    Only the array of paths is kept in memory and pickled.

    Args:
        paths: Paths of the files, valid on every machine that reads them.
        side: Height and width to which the central square of each image is resampled, in pixels.
        decoders: Number of decoding threads; None: one per torch thread, at most 8.
        pixels: How values and transparency are converted; None: the defaults of ``Pixels``.
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
        """Shape of the decoded images."""
        return len(self), 3, self._side, self._side

    @property
    def nbytes(self) -> int:
        """Size of the decoded images in bytes."""
        return len(self) * 3 * self._side**2

    def __getitem__(self, some: slice | Indices) -> Images:
        """Decodes images in threads and returns uint8 [b, 3, side, side].

        Raises:
            UnreadableImageError: A file is missing or cannot be decoded; the message names it.
        """
        images, unreadable = self.readable(np.arange(len(self))[some])
        for error in unreadable.values():
            raise error
        return images

    def subset(self, indices: Indices) -> ImageFiles:
        """Returns the files of ``indices`` without decoding them."""
        return ImageFiles(self._paths[indices], self._side, decoders=self._decoders, pixels=self._pixels)

    def stamps(self) -> Iterator[bytes]:
        """Yields a line for each file that changes when it does: path, size, time and decoding settings."""
        for path in self._paths.tolist():
            state = Path(os.fsdecode(path)).stat()
            yield f"{path!r} {state.st_size} {state.st_mtime_ns} {self._side} {self._pixels}".encode()

    def listing(self, root: Path) -> Iterator[bytes]:
        """Yields a line for each file that is the same in a copy of ``root``: relative path and size."""
        for path in self._paths.tolist():
            name = os.path.relpath(path, os.fsencode(root))
            yield b"%r %d\n" % (name, Path(os.fsdecode(path)).stat().st_size)

    def readable(self, indices: Indices) -> tuple[Images, dict[int, UnreadableImageError]]:
        """Decodes like ``files[indices]``, but skips files that cannot be decoded.

        Returns:
            The decoded images, uint8 [r, 3, side, side], and the errors of the others by position in ``indices``.
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
        """Decodes one image in the calling thread, uint8 [3, side, side]; raises ``UnreadableImageError``."""
        return decode(os.fsdecode(self._paths[index]), self._side, self._pixels)

    def _attempt(self, index: int) -> Images | UnreadableImageError:
        try:
            return self.decode(index)
        except UnreadableImageError as error:
            return error

    def pool(self) -> ThreadPoolExecutor:
        """Returns a pool of decoding threads. PIL releases Python's global lock, so processes would not be faster."""
        decoders = self._decoders or min(torch.get_num_threads(), _MAX_DECODERS)
        # PIL loads its formats on demand, which is not thread-safe.
        return ThreadPoolExecutor(decoders, thread_name_prefix="decoder", initializer=Image.init)
