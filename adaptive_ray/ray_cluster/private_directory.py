"""Creates a private temporary directory for the local Ray cluster of a run."""

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
#: Locked while the process of the run is alive.
_LOCK = "adaptive_ray.lock"
#: Maximum length of the base path in bytes: paths of sockets are limited to 107 (103 on macOS).
_LONGEST = (103 if sys.platform == "darwin" else 107) - len(
    "/ar-12345678/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_MetricsHead"
)


@contextmanager
def private_directory() -> Iterator[Path]:
    """Creates a directory for this process and sets ``RAY_TMPDIR`` to it until the block exits.

    It is created in the user's ``RAY_TMPDIR``, or else in the system's temporary directory, and removed on exit.
    Directories left by killed runs are removed too.

    Raises:
        UserError: It cannot be created, or its path is too long for sockets.
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
    """Whether Ray's temporary directory ``path`` was created by ``private_directory``, in any process."""
    return (path.parent / _LOCK).exists()


def _base(chosen: str | None) -> Path:
    if not chosen:
        usual = Path(tempfile.gettempdir()).absolute()
        return usual if len(os.fsencode(usual)) <= _LONGEST else Path("/tmp")  # noqa: S108
    path = Path(chosen).absolute()
    if len(os.fsencode(path)) > _LONGEST:
        raise UserError(f"RAY_TMPDIR={chosen} is too long for Ray's sockets; use a path of at most {_LONGEST} bytes")
    return path


def _make(base: Path) -> tuple[Path, int]:
    """Creates a directory; returns it and the descriptor that holds its lock."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            (path / _LOCK).touch()
            lock = _lock(path / _LOCK)
            if lock is not None:  # else another run removed it as abandoned
                return path, lock
    except OSError as error:
        raise UserError(
            f"Ray's files cannot be written to {base}: {error.strerror}; set RAY_TMPDIR to a writable directory"
        ) from None


def _lock(file: Path) -> int | None:
    """Acquires the lock; None: it is held by another process, or the file does not exist or is not accessible."""
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
    """Removes the directory, the lock file last, so that the next run can remove what is left."""
    for _ in range(20):  # the last processes of Ray may still be writing
        shutil.rmtree(path / "ray", ignore_errors=True)
        if not (path / "ray").exists():
            shutil.rmtree(path, ignore_errors=True)
            return
        time.sleep(0.1)
