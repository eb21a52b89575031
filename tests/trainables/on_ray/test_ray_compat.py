"""Private names of Ray Train that trials and workers use. A failure says what an upgrade breaks."""

from __future__ import annotations

import inspect

import pytest
from ray.train._internal.session import _TrainSession

from trainables.on_ray import ray_compat

BREAKS = {
    "DataParallelTrainer": "no trial starts",
    "DatasetsCallback": "each Ray Train run starts an actor for datasets that there are not",
    "PlacementGroupCleanerCallback": "each Ray Train run starts an actor that the driver makes unnecessary",
    "WorkerGroupCallback": "workers that die while they start keep their resources reserved",
    "DefaultFailurePolicy": "errors that would occur again are retried, or lost workers are not",
    "FailureDecision": "errors that would occur again are retried, or lost workers are not",
    "WorkerHealthCheckFailedError": "a dead worker is not recognised, and its candidate fails",
    "WorkerHealthCheckTimeoutError": "a worker on a dead node is not recognised, and its candidate fails",
    "ControllerError": "a dead controller is not recognised, and its candidate fails",
    "TrainingFailedError": "a trial's reason is Ray's traceback",
    "WorkerGroupError": "a trial's reason is Ray's traceback",
    "TrainController": "no trial starts",
    "get_address_and_port": "several workers form no process group",
    "get_session": "no report of a trial reaches Tune",
}


def test_every_name_is_listed_here() -> None:
    assert BREAKS.keys() == set(ray_compat.__all__)


@pytest.mark.parametrize(
    ("owner", "method", "arguments", "breaks"),
    [
        (ray_compat.DataParallelTrainer, "_create_default_callbacks", (), BREAKS["DatasetsCallback"]),
        (
            ray_compat.DataParallelTrainer,
            "_initialize_and_run_controller",
            ("failure_policy",),
            BREAKS["DefaultFailurePolicy"],
        ),
        (
            ray_compat.DefaultFailurePolicy,
            "make_decision",
            ("training_failed_error",),
            BREAKS["DefaultFailurePolicy"],
        ),
        (ray_compat.WorkerGroupCallback, "on_worker_group_start", (), BREAKS["WorkerGroupCallback"]),
        (ray_compat.WorkerGroupCallback, "after_worker_group_start", ("worker_group",), BREAKS["WorkerGroupCallback"]),
        (
            ray_compat.WorkerGroupCallback,
            "after_worker_group_poll_status",
            ("worker_group_status",),
            BREAKS["WorkerHealthCheckFailedError"],
        ),
    ],
)
def test_overridden_methods_are_called_as_before(
    owner: type, method: str, arguments: tuple[str, ...], breaks: str
) -> None:
    found = inspect.signature(getattr(owner, method)).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in found.values())
    assert takes_all or set(arguments) <= found.keys(), f"{owner.__name__}.{method} has changed: {breaks}"


def test_failures_of_a_policy_without_progress_are_reset() -> None:
    """Otherwise all failures of a run count, instead of those without a report in between."""
    source = inspect.getsource(ray_compat.DefaultFailurePolicy)
    assert "_worker_group_failures" in source


def test_reports_of_a_trial_pass_through_a_queue_of_its_session() -> None:
    """Otherwise no report reaches Tune, or an actor passes them on."""
    source = inspect.getsource(_TrainSession)
    assert "if self._inter_actor_queue is None:" in source
    assert "self._inter_actor_queue.get(" in source
