"""Ends an unfinished run: closes its MLflow runs, and explains full disks and lost output to the user."""

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

#: What is wrong with a disk, a folder or the output, and not with a program or a network.
_STORAGE = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENOENT", "ENOTDIR", "EISDIR",
        "EPIPE", "EMFILE", "ENFILE",
    )
    if hasattr(errno, name)
}  # fmt: skip


class Tracking:
    """A run's tracker, opened in another thread while Ray starts: MLflow's database takes seconds.

    Args:
        pool: To open it in.
        opened: Opens it; None: nothing is tracked.
    """

    def __init__(self, pool: Executor, opened: Callable[[], Tracker | None]) -> None:
        self._pool, self._opened = pool, opened
        self._opening: Future[Tracker | None] | None = None

    def open(self) -> None:
        """Starts to open it, unless that was done."""
        self._opening = self._opening or self._pool.submit(self._opened)

    def tracker(self) -> Tracker | None:
        """The tracker, once it is open; raises what opening it has raised."""
        self.open()
        assert self._opening is not None
        return self._opening.result()

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Ends MLflow's runs if the block fails: as KILLED if it is interrupted, else as FAILED."""
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
        with suppress(Exception):  # where it cannot be opened, there is nothing to end
            if (tracker := self._opening.result()) is not None:
                tracker.end(status)


def storage_problem(error: BaseException) -> str | None:
    """What is wrong with a disk, a folder or the output, if that is to blame for an error; else None.

    Ray wraps what is raised in its callbacks; all that led to an error is looked at.
    """
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in _STORAGE):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OSError):
        return None
    if isinstance(cause, BrokenPipeError):
        return "the output was closed by whoever read it"
    place = cause.filename if isinstance(cause.filename, str) else "a file or the output cannot be written"
    return f"{place}: {os.strerror(cause.errno or 0)}"  # its own text may be a library's
