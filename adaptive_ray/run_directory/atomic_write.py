"""Writes files so that a crash leaves either the old or the new content, or whole lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Yields a temporary path; on exit, flushes it to disk and replaces ``file``. It is removed after an error."""
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
            raise type(error)(error.errno, error.strerror, str(file)) from None  # the name that the caller knows
        raise


def write_whole(file: Path, content: str | bytes) -> None:
    """Creates or replaces ``file`` atomically. Text is encoded as UTF-8."""
    with replaced(file) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


def append_line(file: Path, line: str) -> None:
    """Appends a line and flushes it to disk. If a crash has truncated the last line, the new one begins after it."""
    with file.open("a+b") as lines:
        torn = False
        if lines.tell():
            lines.seek(-1, os.SEEK_END)
            torn = lines.read(1) != b"\n"
        lines.write(("\n" * torn + line + "\n").encode())
        lines.flush()
        os.fsync(lines.fileno())
