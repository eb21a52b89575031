"""Which failures of a Ray Train run are retried: lost processes and nodes are; what would fail again is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import exceptions as lost
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.integration.ray_train import TuneReportCallback

from schedulers.tune.trials import RESTARTED, NoRetryError, disk_error, what_died
from trainables.on_ray.process_group import PeerLostError
from trainables.on_ray.ray_compat import (
    ControllerError,
    DefaultFailurePolicy,
    FailureDecision,
    TrainingFailedError,
    WorkerGroupCallback,
    WorkerGroupError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from trainables.training.checkpoint import CheckpointError
from trainables.training.host_memory import MemoryTakenError

#: How often a run is restarted without a report in between.
RETRIES = 3
#: Seconds in which Ray knows that a process is gone, once another one has lost its connection to it.
_NOTICED = 10
#: What Ray raises when a process, a node, or an object on it is gone.
_LOST = (
    lost.RayActorError, lost.ObjectLostError, lost.NodeDiedError, lost.WorkerCrashedError, lost.LocalRayletDiedError,
    lost.RaySystemError, WorkerHealthCheckTimeoutError,
)  # fmt: skip


class WorkerLostError(WorkerHealthCheckFailedError):  # type: ignore[misc]
    """A worker was lost to the machine.

    Args:
        message: Which one, and how.
        failure: What Ray, or another worker, has raised.
        reports: How many reports of the run there had been.
    """

    def __init__(self, message: str, failure: BaseException, reports: int) -> None:
        super().__init__(message, failure)
        self.reports = reports

    def __reduce__(self) -> Any:
        return type(self), (self._message, self.health_check_failure, self.reports)

    def __str__(self) -> str:
        return str(self._message)


class Workers(TuneReportCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Passes reports on to Tune, and finds out which worker died where others merely lost their connection to it.

    Runs in Ray Train's controller. The report after a restart says what was lost (``RESTARTED``).
    """

    def __init__(self) -> None:
        super().__init__()
        self._group: Any = None
        self._reports = 0
        self._losses: list[str] = []

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Counts a worker that dies while it starts as lost, and frees its place: Ray 2.60 would keep it reserved."""
        before, self._group = self._group, None
        try:
            yield
        except Exception as error:
            dead = self._dead() if self._group is not None else {}
            if self._group is not None:
                self._group._worker_group_state.shutdown()
                self._group = None
            cause = next(iter(dead.values()), error if isinstance(error, RayActorError) else error.__cause__)
            if not isinstance(cause, RayActorError):
                raise
            loss = WorkerLostError(f"a worker that was starting: {what_died(cause)}", cause, self._reports)
            self._losses.append(str(loss))
            raise WorkerGroupError(str(loss), {next(iter(dead), 0): loss}) from error
        if before is not None and not self._losses:
            self._losses.append("its node was taken away")  # announced beforehand: no worker has failed

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._group = worker_group

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._reports += 1
        if self._losses:
            metrics = [{**metrics[0], RESTARTED: "; ".join(self._losses)}]
            self._losses = []
        super().after_report(run_context, metrics, checkpoint)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        errors = worker_group_status.errors
        if not errors or any(not _is_lost(error) for error in errors.values()):
            return
        dead = {rank: error.health_check_failure for rank, error in errors.items() if _is_dead(error)}
        dead = dead or self._dead()
        for rank, error in dead.items():
            text = f"worker {rank}: {what_died(error)}"
            self._losses.append(text)
            if not error.preempted:
                worker_group_status.worker_statuses[rank].error = WorkerLostError(text, error, self._reports)
        if not dead:
            rank, symptom = next(iter(errors.items()))
            self._losses.append(f"worker {rank}: {_line(symptom)}")
            worker_group_status.worker_statuses[rank].error = WorkerLostError(self._losses[-1], symptom, self._reports)

    def _dead(self) -> dict[int, RayActorError]:
        """The workers whose process is gone."""
        refs = {worker.execute_async(_nothing): rank for rank, worker in enumerate(self._group.get_workers())}
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=_NOTICED)
        dead = {}
        for ref in done:
            try:
                ray.get(ref)
            except RayActorError as error:
                dead[refs[ref]] = error
        return dead


class RetryLostWorkers(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray Train's own policy, for lost workers only; it counts failures without a report in between."""

    def __init__(self, failure_config: Any) -> None:
        super().__init__(failure_config)
        self._reports = 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if isinstance(training_failed_error, WorkerGroupError):
            errors = training_failed_error.worker_failures.values()
            if any(not _is_lost(error) for error in errors):
                return FailureDecision.RAISE
            reports = max((error.reports for error in errors if isinstance(error, WorkerLostError)), default=0)
            if reports > self._reports:
                self._reports, self._worker_group_failures = reports, 0
        return super().make_decision(training_failed_error)


def as_failure(error: TrainingFailedError) -> RuntimeError | OSError | MemoryTakenError:
    """What a trial is to raise when its Ray Train run has failed for good; the message is the cause."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in (getattr(error, "controller_failure", None), *failures.values()):
        if (disk := disk_error(failure)) is not None:
            return disk
    if isinstance(error, ControllerError):
        return RuntimeError(_line(error.controller_failure))  # Tune may place it elsewhere
    causes = [failure for failure in failures.values() if not _is_lost(failure)]
    if causes and isinstance(causes[0], CheckpointError):
        return RuntimeError(str(causes[0]))  # it may continue from an older one
    taken = next((failure for failure in causes if isinstance(failure, MemoryTakenError)), None)
    if taken is not None:
        return taken  # by others, and so it would not fail again without them
    if causes:
        return NoRetryError(_line(causes[0]))
    losses = [failure for failure in failures.values() if isinstance(failure, WorkerLostError)]
    return NoRetryError(
        f"{losses[0] if losses else _line(error)}, {RETRIES + 1} times without a report in between. If the machine is "
        "short of memory, let fewer candidates train at once, or lower simclr.micro_batch or trial.workers"
    )


def _is_lost(error: BaseException) -> bool:
    """Whether a worker's error comes from a process, a node or a connection that is gone."""
    if isinstance(error, WorkerLostError | PeerLostError) or _is_dead(error):
        return True
    return isinstance(error, _LOST) and not isinstance(error, RayTaskError)


def _is_dead(error: BaseException) -> bool:
    return isinstance(error, WorkerHealthCheckFailedError) and isinstance(error.health_check_failure, RayActorError)


def _line(error: BaseException) -> str:
    """An error in a line: its type and what it says first, or for what a remote call raised last."""
    lines = str(error).strip().splitlines() or [""]
    return lines[-1] if isinstance(error, RayTaskError) else f"{type(error).__name__}: {lines[0]}"


def _nothing() -> None:
    """Called to see whether a worker answers."""
