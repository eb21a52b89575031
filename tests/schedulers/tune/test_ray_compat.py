"""Private and undocumented names of Ray Tune that the scheduler uses. A failure says what an upgrade breaks."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from ray.air.constants import TRAINING_ITERATION
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher, SearchGenerator
from ray.tune.search.search_algorithm import SearchAlgorithm

from schedulers.tune import ray_compat


@pytest.fixture
def trial() -> Trial:
    return ray_compat.detached_trial("1", {"candidate": "64"})


@pytest.mark.parametrize(
    ("owner", "name", "breaks"),
    [
        (FIFOScheduler, "_supports_buffered_results", "results may be buffered: pruned trials train on"),
        (TuneController, "_set_trial_status", "failed trials cannot be paused for another race"),
        (TuneController, "_mark_trial_to_checkpoint", "a removed trial is restored as paused"),
        (TuneController, "pause_trial", "trials that spent the window keep their resources"),
        (TuneController, "search_alg", "the number of trials is unknown, so the race ends too early"),
        (SearchAlgorithm, "total_samples", "the number of trials is unknown, so the race ends too early"),
        (Trial, "latest_checkpoint_result", "trials cannot fork from the winner's checkpoint"),
        (Trial, "is_saving", "trials that are pruned while saving are stopped after they resume"),
        (Trial, "pickled_error_file", "NoRetryError and disk errors are not recognised"),
        (Trial, "error_file", "failed trials have no reason"),
        (Trial, "has_reported_at_least_once", "an experiment that is continued loses its last results"),
    ],
)
def test_ray_has(owner: type, name: str, breaks: str) -> None:
    assert hasattr(owner, name), f"{owner.__name__}.{name} is gone: {breaks}"


def test_methods_take_the_arguments_that_are_passed(trial: Trial) -> None:
    """Otherwise the calls raise TypeError in the middle of an experiment."""
    controller: Any = object()
    inspect.signature(TuneController._set_trial_status).bind(controller, trial, Trial.PAUSED)
    inspect.signature(TuneController._mark_trial_to_checkpoint).bind(controller, trial)
    inspect.signature(TuneController.pause_trial).bind(controller, trial, should_checkpoint=False)


def test_scheduler_is_not_buffered() -> None:
    """Otherwise trials train on after they are pruned."""
    assert TrialScheduler().supports_buffered_results
    assert not ray_compat.UnbufferedScheduler().supports_buffered_results


def test_result_keys() -> None:
    """Otherwise the error about a missing metric lists Tune's own entries, and restarts count twice."""
    assert TRAINING_ITERATION in ray_compat.AUTO_RESULT_KEYS
    assert ray_compat.DONE == "done"


def test_last_result_is_replaced(trial: Trial) -> None:
    """Otherwise stop reasons are lost."""
    ray_compat.set_last_result(trial, {"loss": 1.0})
    assert trial.last_result["loss"] == 1.0


def test_failures_are_reset(trial: Trial) -> None:
    """Otherwise ``max_failures`` limits all failures of a run instead of those without progress in between."""
    assert trial.run_metadata.num_failures == 0
    trial.run_metadata.num_failures = 2
    ray_compat.reset_failures(trial)
    assert trial.num_failures == 0


def test_checkpoint_is_copied(trial: Trial) -> None:
    """Otherwise a second race does not start from the winner's weights."""
    source = ray_compat.detached_trial("2", {"candidate": "128"})
    source.run_metadata.checkpoint_manager._latest_checkpoint_result = _TrainingResult(
        Checkpoint("/tmp/checkpoint"), {"samples_seen": 7, "trial_id": "2"}
    )
    assert trial.checkpoint is None  # cached, so it must be invalidated
    ray_compat.copy_checkpoint(source, trial)
    assert trial.checkpoint.path == "/tmp/checkpoint"
    metrics = trial.latest_checkpoint_result.metrics
    assert metrics == {"samples_seen": 7, "trial_id": "1", "config": {"candidate": "64"}}
    assert source.latest_checkpoint_result.metrics["trial_id"] == "2"


class Last(Searcher):  # type: ignore[misc]
    def suggest(self, trial_id: str) -> None:
        return None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None: ...


def test_concurrency_limit() -> None:
    """Otherwise more trials run at once than ``max_concurrent_trials`` allows."""
    assert ray_compat.concurrency_limit(BasicVariantGenerator(max_concurrent=3)) == 3
    assert ray_compat.concurrency_limit(SearchGenerator(ConcurrencyLimiter(Last("loss", "min"), 2))) == 2
    assert ray_compat.concurrency_limit(SearchGenerator(Last("loss", "min"))) == float("inf")
