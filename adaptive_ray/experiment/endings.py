"""Opens the MLflow tracker in the background and ends its runs if the run fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

from adaptive_ray.ray_cluster.signals import ended_once

if TYPE_CHECKING:
    from adaptive_ray.experiment.mlflow_tracking import Tracker

#: Errors of disks, directories or output streams.
_STORAGE = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENOENT", "ENOTDIR", "EISDIR",
        "EPIPE", "EMFILE", "ENFILE",
    )
    if hasattr(errno, name)
}  # fmt: skip


class Tracking:
    """Opens the tracker of a run in another thread while Ray starts, since that takes seconds.

    Args:
        pool: Executor.
        opened: Opens and returns the tracker; returns None if tracking is disabled.
    """

    def __init__(self, pool: Executor, opened: Callable[[], Tracker | None]) -> None:
        self._pool, self._opened = pool, opened
        self._opening: Future[Tracker | None] | None = None

    def open(self) -> None:
        """Starts opening the tracker, if not done yet."""
        self._opening = self._opening or self._pool.submit(self._opened)

    def tracker(self) -> Tracker | None:
        """Waits for the tracker and returns it; raises the error if it cannot be opened."""
        self.open()
        assert self._opening is not None
        return self._opening.result()

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Ends the MLflow runs if the block fails: as KILLED on interruption, else as FAILED."""
        try:
            with ended_once():
                yield
        except KeyboardInterrupt:
            self._end("KILLED")
            raise
        except BaseException:
            self._end("FAILED")
            raise

    def _end(self, status: Literal["KILLED", "FAILED"]) -> None:
        if self._opening is None or self._opening.cancel():
            return
        with suppress(Exception):  # it may not have been opened
            if (tracker := self._opening.result()) is not None:
                tracker.end(status)


def storage_problem(error: BaseException) -> str | None:
    """Describes the error of a disk, directory or output stream that caused ``error``; None if there is none.

    Follows the chain of causes, since Ray wraps errors of callbacks.
    """
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in _STORAGE):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OSError):
        return None
    if isinstance(cause, BrokenPipeError):
        return "the output was closed by the reader"
    place = cause.filename if isinstance(cause.filename, str) else "a file or the output cannot be written"
    return f"{place}: {os.strerror(cause.errno or 0)}"  # str(error) may be the message of a library
