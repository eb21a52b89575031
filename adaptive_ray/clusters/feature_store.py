"""Stores features on disk, in one file that is written shard by shard and read as a memory map."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Images per shard.
SHARD = 256


class FeatureFile:
    """A file of float16 features [n, d] with a checksum per shard.

    The checksum is appended to ``shards.jsonl`` after the rows are on disk. ``missing`` verifies all checksums, so that
    after an interruption or a corruption only the affected shards are computed again.

    Args:
        folder: A folder for these features, created by the first ``write``.
        rows: Number of images.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        self._file, self._sums = folder / "features.npy", folder / "shards.jsonl"
        self._array = self._opened()

    @property
    def shards(self) -> list[slice]:
        """All shards, in order."""
        return [slice(start, min(start + SHARD, self.rows)) for start in range(0, self.rows, SHARD)]

    def missing(self) -> list[slice]:
        """Returns the shards that are missing or corrupt."""
        if self._array is None:
            return self.shards
        sums = self._known_sums()
        return [rows for rows in self.shards if sums.get(rows.start) != zlib.crc32(self._array[rows].tobytes())]

    def write(self, rows: slice, features: NDArray[np.float16]) -> None:
        """Writes a shard, then its checksum."""
        if self._array is None or self._array.shape[1] != features.shape[1]:
            self._array = self._created(features.shape[1])
        self._array[rows] = features
        self._array.flush()
        line = json.dumps({"start": rows.start, "crc32": zlib.crc32(features.tobytes())})
        with self._sums.open("a", encoding="utf-8") as log:
            log.write(line + "\n")
            log.flush()
            os.fsync(log.fileno())

    def read(self) -> NDArray[np.float16]:
        """Returns all features as a read-only memory map."""
        features: NDArray[np.float16] = np.load(self._file, mmap_mode="r")
        return features

    def _opened(self) -> Any:
        """Returns the array of an earlier process; None if there is none of this shape."""
        try:
            array = np.load(self._file, mmap_mode="r+")
        except (OSError, ValueError, EOFError):
            return None
        fits = array.dtype == np.float16 and array.ndim == 2 and len(array) == self.rows
        return array if fits else None

    def _created(self, dimensions: int) -> Any:
        """Replaces the file by an empty one, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sums.unlink(missing_ok=True)
        part = self._file.with_suffix(f".{os.getpid()}.part")
        np.lib.format.open_memmap(part, "w+", np.float16, (self.rows, dimensions)).flush()
        part.replace(self._file)
        return np.load(self._file, mmap_mode="r+")

    def _known_sums(self) -> dict[int, int]:
        sums: dict[int, int] = {}
        for line in self._sums.read_text(encoding="utf-8").splitlines() if self._sums.exists() else []:
            try:
                entry = json.loads(line)
                sums[entry["start"]] = entry["crc32"]
            except (ValueError, KeyError, TypeError):  # a partial line: its shard is computed again
                continue
        return sums
