"""Images that stay on disk: known by their paths, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from trainables.batches.sampling import Indices

Images = NDArray[np.uint8]

#: Python's lock is held for about a tenth of an image's decoding, so that more threads than this take turns.
_MAX_DECODERS = 8


class ImageFiles:
    """Image files that look like the uint8 array [n, 3, side, side] that they would make.

    What is held, pickled, and shared by Ray's workers is one array of paths.

    Args:
        paths: Of the files; every machine that reads them must reach them there.
        side: Pixels; the central square of each image is brought to this size.
        decoders: Threads that decode; None: one for each of torch's threads, at most 8.
    """

    def __init__(
        self, paths: Iterable[str | bytes | os.PathLike[str]], side: int, *, decoders: int | None = None
    ) -> None:
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self._side, self._decoders = side, decoders

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
        return ImageFiles(self._paths[indices], self._side, decoders=self._decoders)

    def stamps(self) -> Iterator[bytes]:
        """A line for each file that changes with it: path, size and time, and the side it is brought to."""
        for path in self._paths.tolist():
            state = Path(os.fsdecode(path)).stat()
            yield f"{path!r} {state.st_size} {state.st_mtime_ns} {self._side}".encode()

    def read(self, indices: Indices) -> Images:
        """int64 [b] -> uint8 [b, 3, side, side], decoded by as many threads as there are decoders.

        Raises:
            ValueError: A file is missing or holds no readable image; the message names it.
        """
        images = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)
        with self.pool() as pool:
            for row, image in enumerate(pool.map(self.decode, indices.tolist())):
                images[row] = image
        return images

    def decode(self, index: int) -> Images:
        """One image, uint8 [3, side, side], decoded in the calling thread. Raises what ``read`` raises."""
        path = os.fsdecode(self._paths[index])
        try:
            with Image.open(path) as image:
                # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves twice the pixels that are needed.
                drafted = image.draft("RGB", (2 * self._side, 2 * self._side))
                width, height = drafted[1][2:] if drafted else image.size  # fractions: its last pixels may be padding
                return _square(image.convert("RGB"), width, height, self._side)
        except Exception as error:  # PIL raises whatever reading a damaged file raises
            raise ValueError(f"{path} is no readable image ({error}); mend or remove it") from error

    def pool(self) -> ThreadPoolExecutor:
        """Threads to decode in. As fast as processes, because PIL decodes and resamples outside Python's lock."""
        decoders = self._decoders or min(torch.get_num_threads(), _MAX_DECODERS)
        # PIL loads its formats on demand, but not safely in several threads at once.
        return ThreadPoolExecutor(decoders, thread_name_prefix="decoder", initializer=Image.init)


def _square(image: Image.Image, width: float, height: float, side: int) -> Images:
    """The central square of the part that is picture, resampled: uint8 [3, side, side]."""
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    pixels = np.asarray(image.resize((side, side), box=box, reducing_gap=2.0), dtype=np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
