"""Retries Ray Train runs after lost processes and nodes, but not after errors that would occur again."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import exceptions as lost
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.queue import Empty

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
    get_session,
)
from trainables.training.checkpoint import CheckpointError
from trainables.training.host_memory import MemoryTakenError

#: Restarts of a run without a report in between.
RETRIES = 3
#: Seconds within which Ray notices a dead process after another one lost its connection to it.
_NOTICED = 10
#: Errors that Ray raises if a process, a node or an object is lost.
_LOST = (
    lost.RayActorError, lost.ObjectLostError, lost.NodeDiedError, lost.WorkerCrashedError, lost.LocalRayletDiedError,
    lost.RaySystemError, WorkerHealthCheckTimeoutError,
)  # fmt: skip


class WorkerLostError(WorkerHealthCheckFailedError):  # type: ignore[misc]
    """Raised if a worker was lost.

    Args:
        message: Rank of the worker and the cause.
        failure: Exception of Ray or of another worker.
        reports: Reports of the run so far.
    """

    def __init__(self, message: str, failure: BaseException, reports: int) -> None:
        super().__init__(message, failure)
        self.reports = reports

    def __reduce__(self) -> Any:
        return type(self), (self._message, self.health_check_failure, self.reports)

    def __str__(self) -> str:
        return str(self._message)


class Reports(queue.Queue[dict[str, Any]]):
    """A queue within a process in the place of Ray's, whose exception it raises."""

    def get(self, block: bool = True, timeout: float | None = None) -> dict[str, Any]:
        try:
            return super().get(block, timeout)
        except queue.Empty:
            raise Empty from None


class Workers(TuneReportCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Forwards reports to Tune and determines which worker died if others lost their connection to it.

    Runs in Ray Train's controller. The first report after a restart contains the cause (``RESTARTED``).
    """

    def __init__(self) -> None:
        # The controller runs in the trial's process, so reports need no actor between them.
        get_session()._inter_actor_queue = Reports(1)
        super().__init__()
        self._group: Any = None
        self._reports = 0
        self._losses: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}  # workers get a copy as part of their run's configuration, and do not use it

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Treats a worker that dies during start-up as lost and frees its resources, which Ray 2.60 does not."""
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
            self._losses.append("its node was preempted")  # announced beforehand: no worker has failed

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
        """Returns the ranks of workers whose process died, with the error."""
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
    """Retries lost workers only, and counts failures without a report in between."""

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
    """Returns the exception that a trial raises after its Ray Train run failed; its message is the cause."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in (getattr(error, "controller_failure", None), *failures.values()):
        if (disk := disk_error(failure)) is not None:
            return disk
    if isinstance(error, ControllerError):
        return RuntimeError(_line(error.controller_failure))  # Tune may restart it on another node
    causes = [failure for failure in failures.values() if not _is_lost(failure)]
    if causes and isinstance(causes[0], CheckpointError):
        return RuntimeError(str(causes[0]))  # an older checkpoint may be valid
    taken = next((failure for failure in causes if isinstance(failure, MemoryTakenError)), None)
    if taken is not None:
        return taken  # a retry may succeed when other processes have exited
    if causes:
        return NoRetryError(_line(causes[0]))
    losses = [failure for failure in failures.values() if isinstance(failure, WorkerLostError)]
    return NoRetryError(
        f"{losses[0] if losses else _line(error)}, {RETRIES + 1} times without a report in between. If memory is "
        "short, train fewer candidates at once, or lower simclr.micro_batch or trial.workers"
    )


def _is_lost(error: BaseException) -> bool:
    """Returns whether a worker's error was caused by a lost process, node or connection."""
    if isinstance(error, WorkerLostError | PeerLostError) or _is_dead(error):
        return True
    return isinstance(error, _LOST) and not isinstance(error, RayTaskError)


def _is_dead(error: BaseException) -> bool:
    return isinstance(error, WorkerHealthCheckFailedError) and isinstance(error.health_check_failure, RayActorError)


def _line(error: BaseException) -> str:
    """Returns an error in one line: type and first line, or the last line of an error from a remote call."""
    lines = str(error).strip().splitlines() or [""]
    return lines[-1] if isinstance(error, RayTaskError) else f"{type(error).__name__}: {lines[0]}"


def _nothing() -> None:
    """Called to check that a worker responds."""
