"""Makes a temporary directory for the Ray that one run starts, apart from any other Ray, and removes it at the end."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptive_ray.errors import UserError

_PREFIX = "ar-"
#: Locked for as long as the run's process lives, however it ends.
_LOCK = "adaptive_ray.lock"
#: The longest path, in bytes, below which Ray's sockets can lie; theirs may have 107 (on macOS 103).
_LONGEST = (103 if sys.platform == "darwin" else 107) - len(
    "/ar-12345678/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_MetricsHead"
)


@contextmanager
def private_directory() -> Iterator[Path]:
    """Makes a directory for this process alone and names it to Ray (``RAY_TMPDIR``) until the block is left.

    It lies in the user's own ``RAY_TMPDIR`` if there is one, else in the system's directory for temporary files. It is
    removed at the end; what runs that were killed have left is removed by the next one.

    Raises:
        UserError: It cannot be made there, or sockets within it would have too long a name.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    base = _base(chosen)
    _remove_abandoned(base)
    path, lock = _make(base)
    os.environ["RAY_TMPDIR"] = str(path)
    try:
        yield path
    finally:
        if chosen is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = chosen
        _remove(path)
        os.close(lock)


def is_private(path: Path) -> bool:
    """Whether Ray's directory for temporary files (with its sessions) is such a directory, of any process."""
    return (path.parent / _LOCK).exists()


def _base(chosen: str | None) -> Path:
    if not chosen:
        usual = Path(tempfile.gettempdir()).absolute()
        return usual if len(os.fsencode(usual)) <= _LONGEST else Path("/tmp")  # noqa: S108
    path = Path(chosen).absolute()
    if len(os.fsencode(path)) > _LONGEST:
        raise UserError(
            f"RAY_TMPDIR={chosen} is too long: Ray's sockets lie there, and their names are limited; "
            f"use a path of at most {_LONGEST} bytes"
        )
    return path


def _make(base: Path) -> tuple[Path, int]:
    """A new directory and the descriptor that holds its lock."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            (path / _LOCK).touch()
            lock = _lock(path / _LOCK)
            if lock is not None:  # else another run has just removed it as abandoned
                return path, lock
    except OSError as error:
        raise UserError(
            f"Ray's files cannot be written to {base}: {error.strerror}; "
            f"set RAY_TMPDIR to a directory that you can write to"
        ) from None


def _lock(file: Path) -> int | None:
    """A descriptor that holds the lock; None: another process does, or the file is not there or another user's."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(base: Path) -> None:
    for file in base.glob(f"{_PREFIX}*/{_LOCK}"):
        lock = _lock(file)
        if lock is not None:
            if os.fstat(lock).st_uid == os.geteuid():
                _remove(file.parent)
            os.close(lock)


def _remove(path: Path) -> None:
    """Removes the directory; the lock's file last, so that the next run recognises what is left."""
    for _ in range(20):  # Ray's last processes may still write
        shutil.rmtree(path / "ray", ignore_errors=True)
        if not (path / "ray").exists():
            shutil.rmtree(path, ignore_errors=True)
            return
        time.sleep(0.1)
