"""Opens the MLflow tracker in the background and ends its runs if the run fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

from adaptive_ray.ray_cluster.signals import ended_once

if TYPE_CHECKING:
    from adaptive_ray.experiment.mlflow_tracking import Tracker


class BackgroundTracker:
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
