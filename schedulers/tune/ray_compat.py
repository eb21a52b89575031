"""Wraps the private and undocumented names of Ray Tune 2.60 that the scheduler needs.

No other module of ``schedulers`` uses such names. ``tests/schedulers/tune/test_ray_compat.py`` checks each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ray.tune.execution.tune_controller import TuneController  # passed to every method of a scheduler
from ray.tune.experiment import Trial
from ray.tune.result import AUTO_RESULT_KEYS, DONE  # names that Tune adds to results
from ray.tune.schedulers import FIFOScheduler

__all__ = ["AUTO_RESULT_KEYS", "DONE", "TuneController", "UnbufferedScheduler"]


class UnbufferedScheduler(FIFOScheduler):  # type: ignore[misc]
    """Base of schedulers that must see every result before the trial continues."""

    # Otherwise TUNE_RESULT_BUFFER_LENGTH lets trials run on while the decision is pending.
    _supports_buffered_results = False


def set_trial_status(controller: TuneController, trial: Trial, status: str) -> None:
    """Changes the status of a trial that the controller already manages; ``Trial.set_status`` skips its queues."""
    controller._set_trial_status(trial, status)


def save_trial(controller: TuneController, trial: Trial) -> None:
    """Includes a trial in the next snapshot of the experiment; Tune 2.60 omits paused trials that were stopped."""
    controller._mark_trial_to_checkpoint(trial)


def set_last_result(trial: Trial, result: Mapping[str, Any]) -> None:
    """Replaces the last result. An assignment, because Tune does not save results that were changed in place."""
    trial.run_metadata.last_result = dict(result)


def reset_failures(trial: Trial) -> None:
    """Resets the count that ``FailureConfig(max_failures=...)`` limits."""
    trial.run_metadata.num_failures = 0


def copy_checkpoint(source: Trial, target: Trial) -> None:
    """Makes a paused trial resume from another trial's latest checkpoint (as Tune's PopulationBasedTraining does)."""
    checkpoint = copy.copy(source.latest_checkpoint_result)
    checkpoint.metrics = {**checkpoint.metrics, "trial_id": target.trial_id, "config": target.config}
    target.run_metadata.checkpoint_manager._latest_checkpoint_result = checkpoint
    target.run_metadata.invalidate_cache()


def concurrency_limit(search_algorithm: Any) -> float:
    """Returns ``TuneConfig(max_concurrent_trials=...)``, or inf."""
    searcher = getattr(search_algorithm, "searcher", None)
    return getattr(search_algorithm, "max_concurrent", 0) or getattr(searcher, "max_concurrent", 0) or float("inf")


def detached_trial(trial_id: str, config: Mapping[str, Any]) -> Trial:
    """Returns a trial without a trainable, for replaying recorded results to a scheduler."""
    return Trial("recorded", config=dict(config), trial_id=trial_id, stub=True, _setup_default_resource=False)
