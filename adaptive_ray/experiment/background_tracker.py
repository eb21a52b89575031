"""Opens the MLflow tracker in the background and ends its runs if the run fails."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.ray_cluster.signals import ended_once
from adaptive_ray.run_directory.directory import RunDirectory

if TYPE_CHECKING:
    from adaptive_ray.experiment.mlflow_tracking import Tracker


class BackgroundTracker:
    """Opens the tracker of a run in another thread while Ray starts, since that takes seconds."""

    def __init__(self, pool: Executor, directory: RunDirectory) -> None:
        self._pool, self._directory = pool, directory
        self._opening: Future[Tracker | None] | None = None

    def open(self, config: ExperimentConfig) -> None:
        """Starts opening the tracker of a run whose batch sizes are known, if not done yet."""
        self._opening = self._opening or self._pool.submit(self._opened, config)

    def tracker(self) -> Tracker | None:
        """Waits for the tracker and returns it, or raises why it cannot be opened; None if tracking is disabled."""
        assert self._opening is not None, "call open() first"
        return self._opening.result()

    def _opened(self, config: ExperimentConfig) -> Tracker | None:
        if not config.tracking.enabled:
            return None
        from adaptive_ray.experiment.mlflow_tracking import Tracker  # mlflow takes seconds to import

        return Tracker(config, self._directory)

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
