"""Tests which failures are retried and their messages. Tests of whole experiments kill real processes."""

from __future__ import annotations

import errno
import pickle

import pytest
import ray.train
import torch
from ray.exceptions import ActorDiedError, NodeDiedError, ObjectLostError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from schedulers.tune.trials import NoRetryError
from trainables.on_ray.failures import RETRIES, RetryLostWorkers, WorkerLostError, as_failure
from trainables.on_ray.process_group import PeerLostError
from trainables.training.checkpoint import CheckpointError
from trainables.training.host_memory import MemoryTakenError

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


def policy() -> RetryLostWorkers:
    return RetryLostWorkers(ray.train.FailureConfig(max_failures=RETRIES))


def lost(reports: int = 0) -> WorkerGroupError:
    died = WorkerLostError("worker 1: process 7 (RayTrainWorker) died", ActorDiedError(), reports)
    return WorkerGroupError("two errors", {0: PeerLostError("Connection closed by peer"), 1: died})


@pytest.mark.parametrize(
    "error",
    [ValueError("a batch of 4096\nand more"), MemoryError("too little"), torch.OutOfMemoryError("CUDA"), KeyError("x")],
)
def test_errors_that_would_occur_again_are_not_retried(error: Exception) -> None:
    for failures in ({0: error}, {0: PeerLostError("reset"), 1: error}, {1: error, 2: lost().worker_failures[1]}):
        group = WorkerGroupError("errors", failures)
        assert policy().make_decision(group) is RAISE
        failure = as_failure(group)
        assert isinstance(failure, NoRetryError)
        assert str(failure) == f"{type(error).__name__}: {str(error).splitlines()[0]}"


def test_memory_used_by_other_processes_ends_the_training() -> None:
    error = MemoryTakenError("out of memory: others hold it")
    group = WorkerGroupError("errors", {0: PeerLostError("reset"), 1: error})
    assert policy().make_decision(group) is RAISE
    assert as_failure(group) is error


def test_lost_workers_are_retried_a_limited_number_of_times() -> None:
    decide = policy()
    assert [decide.make_decision(lost()) for _ in range(RETRIES + 1)] == [RETRY] * RETRIES + [RAISE]
    moving = policy()
    assert [moving.make_decision(lost(reports)) for reports in range(1, 20)] == [RETRY] * 19
    failure = as_failure(lost())
    assert isinstance(failure, NoRetryError)
    assert str(failure).startswith("worker 1: process 7 (RayTrainWorker) died, 4 times without a report")
    assert "If memory is short" in str(failure)


@pytest.mark.parametrize(
    "error",
    [
        WorkerHealthCheckFailedError("a health check failed", ActorDiedError()),
        PeerLostError("Connection reset by peer"),
        NodeDiedError("the node died"),
        ObjectLostError("00", None, ""),
    ],
)
def test_all_kinds_of_lost_workers_are_retried(error: Exception) -> None:
    assert policy().make_decision(WorkerGroupError("an error", {0: error})) is RETRY


def test_preemptions_are_not_counted() -> None:
    decide = policy()
    for _ in range(3 * RETRIES):
        assert decide.make_decision(PreemptionError(PreemptionInfo(None, {"node": [0]}))) is RETRY
    assert decide.make_decision(lost()) is RETRY


def test_a_failed_controller_is_retried_by_tune() -> None:
    failure = as_failure(ControllerError(ActorDiedError()))
    assert not isinstance(failure, NoRetryError)
    assert "ActorDiedError" in str(failure)


def test_a_full_disk_is_raised_as_oserror() -> None:
    full = OSError(errno.ENOSPC, "Error writing bytes", "checkpoint.pt")
    for error in (WorkerGroupError("errors", {0: PeerLostError("reset"), 1: full}), ControllerError(full)):
        assert as_failure(error) is full
    missing = FileNotFoundError(errno.ENOENT, "No such file", "labels.csv")
    assert isinstance(as_failure(WorkerGroupError("errors", {0: missing})), NoRetryError)


def test_a_corrupt_checkpoint_is_retried_from_another_one() -> None:
    corrupt = CheckpointError("checkpoint.pt is corrupt")
    group = WorkerGroupError("errors", {0: PeerLostError("reset"), 1: corrupt})
    assert policy().make_decision(group) is RAISE  # the worker would read the same file again
    failure = as_failure(group)
    assert not isinstance(failure, NoRetryError)
    assert str(failure) == "checkpoint.pt is corrupt"


def test_worker_lost_error_can_be_pickled() -> None:
    (_, died) = pickle.loads(pickle.dumps(lost(5))).worker_failures.values()
    assert (str(died), died.reports) == ("worker 1: process 7 (RayTrainWorker) died", 5)
