"""What a Ray Tune trial can do for a scheduler: be paused, go on from another one's weights, say why it ended."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.trainable import FunctionTrainable, Trainable
from ray.tune.utils import flatten_dict

#: Why the scheduler has stopped a trial: an entry of its last result.
STOP_REASON = "stop_reason"
#: What ``ray.tune.integration.ray_train`` reports of a Ray Train run.
_TRAIN_CHECKPOINT = "checkpoint_path"


def is_function(trial: Trial) -> bool:
    """Whether its trainable is a function; else it is a class."""
    return issubclass(trial.get_trainable_cls(), FunctionTrainable)


def can_be_taken_up(trial: Trial, result: Mapping[str, Any] | None = None) -> bool:
    """Whether it would go on from where it was when it made ``result`` (None: its last one), if it were paused."""
    result = trial.last_result if result is None else result
    if is_function(trial):
        return bool(result.get(_TRAIN_CHECKPOINT) or result.get("checkpoint_dir_name"))
    return trial.get_trainable_cls().save_checkpoint is not Trainable.save_checkpoint


def pause(controller: Any, trial: Trial, result: Mapping[str, Any], samples: float) -> str:
    """Pauses a trial that has just reported, so that it can be taken up from there; returns the answer to Tune."""
    if not result.get(_TRAIN_CHECKPOINT):
        return "PAUSE"  # Tune saves the trial and restores it
    _train_from(trial, result[_TRAIN_CHECKPOINT], samples)
    controller.pause_trial(trial, should_checkpoint=False)
    return "NOOP"


def put_aside(controller: Any, trial: Trial) -> str:
    """Pauses a trial whose own weights nobody needs; returns the answer to Tune.

    One that is being saved is saved once more: Tune 2.60 would remember to stop it otherwise, after it has come back.
    """
    controller.pause_trial(trial, should_checkpoint=trial.is_saving)
    return "NOOP"


def weights_at(trial: Trial, time_attr: str) -> float:
    """How far a paused trial had come when the weights were saved that it would go on from; -1: there are none."""
    saved = trial.last_result
    if not saved.get(_TRAIN_CHECKPOINT):
        checkpoint = trial.latest_checkpoint_result
        saved = checkpoint.metrics if checkpoint is not None else {}
    return float(flatten_dict(saved).get(time_attr, -1.0))


def give_weights(trial: Trial, source: Trial, time_attr: str) -> None:
    """Lets a paused trial go on from another paused one's weights (as Tune's PopulationBasedTraining does)."""
    if path := source.last_result.get(_TRAIN_CHECKPOINT):
        _train_from(trial, path, weights_at(source, time_attr))
        return
    given = copy.copy(source.latest_checkpoint_result)
    given.metrics = {**given.metrics, "trial_id": trial.trial_id, "config": trial.config}
    trial.run_metadata.checkpoint_manager._latest_checkpoint_result = given
    trial.run_metadata.invalidate_cache()


def _train_from(trial: Trial, path: str, samples: float) -> None:
    """A Ray Train run that goes on needs a name of its own: samples never fall, so they make one."""
    trial.set_config({**trial.config, "resume_from": path, "run_tag": f"{samples:.12g}"})


def note(trial: Trial, reason: str) -> None:
    """Writes down why a trial was stopped. Assigned anew, or Tune would not save it."""
    trial.run_metadata.last_result = {**trial.last_result, STOP_REASON: reason}


def failure_reason(trial: Trial) -> str:
    """The last line of a failed trial's traceback, which names the error."""
    file = trial.error_file
    lines = Path(file).read_text().strip().splitlines() if file and Path(file).exists() else []
    return f"failed: {lines[-1].strip()}" if lines else "failed"


def concurrency_limit(search_algorithm: Any) -> float:
    """``TuneConfig(max_concurrent_trials=...)``; inf without one."""
    searcher = getattr(search_algorithm, "searcher", None)
    return getattr(search_algorithm, "max_concurrent", 0) or getattr(searcher, "max_concurrent", 0) or float("inf")
