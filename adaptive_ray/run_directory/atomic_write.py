"""Writes files atomically: readers, also after a crash, see either the whole new file or the one before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Yields the place to write to; what is there after the block is put on the disk, and replaces ``file``.

    Raises:
        OSError: It cannot be written; nothing is left of the attempt.
    """
    new = file.with_name(f".{file.name}.new")
    try:
        yield new
        with new.open("r+b") as written:
            os.fsync(written.fileno())
        new.replace(file)
    except BaseException as error:
        with suppress(OSError):
            new.unlink()
        if isinstance(error, OSError) and error.filename == str(new):
            raise type(error)(error.errno, error.strerror, str(file)) from None  # the name that a person knows
        raise


def write_whole(file: Path, content: str | bytes) -> None:
    """Replaces ``file``, or makes it; text is UTF-8, whatever the machine's language."""
    with replaced(file) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
