"""What a Ray Tune trial can do for a scheduler: pause, start from other weights, restart, say why it ended."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.trainable import FunctionTrainable, Trainable
from ray.tune.utils import flatten_dict

from schedulers.tune.ray_compat import copy_checkpoint, set_last_result

#: Why the scheduler has stopped a trial: an entry of its last result.
STOP_REASON = "stop_reason"
#: An entry of a result: why the trial lost workers since its last result, and continued from its last checkpoint.
RESTARTED = "restarted"
#: What ``ray.tune.integration.ray_train`` reports of a Ray Train run.
_TRAIN_CHECKPOINT = "checkpoint_path"


#: Full, over quota, read-only, broken.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class NoRetryError(RuntimeError):
    """Raised by a trainable that would fail again: the scheduler ends its trial, whatever Tune's ``FailureConfig``."""


def is_function(trial: Trial) -> bool:
    """Whether its trainable is a function; else it is a class."""
    return issubclass(trial.get_trainable_cls(), FunctionTrainable)


def can_be_resumed(trial: Trial, result: Mapping[str, Any] | None = None) -> bool:
    """Whether it would continue from where it was when it made ``result`` (None: its last one), if it were paused."""
    result = trial.last_result if result is None else result
    if is_function(trial):
        return bool(result.get(_TRAIN_CHECKPOINT) or result.get("checkpoint_dir_name"))
    return trial.get_trainable_cls().save_checkpoint is not Trainable.save_checkpoint


def pause(controller: Any, trial: Trial, result: Mapping[str, Any], samples: float) -> str:
    """Pauses a trial that has just reported, so that it can be resumed from there; returns the answer to Tune."""
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
    """How far a paused trial had come when the weights were saved that it would continue from; -1: none."""
    saved = trial.last_result
    if not saved.get(_TRAIN_CHECKPOINT):
        checkpoint = trial.latest_checkpoint_result
        saved = checkpoint.metrics if checkpoint is not None else {}
    return float(flatten_dict(saved).get(time_attr, -1.0))


def give_weights(trial: Trial, source: Trial, time_attr: str) -> None:
    """Lets a paused trial continue from another paused one's weights (as Tune's PopulationBasedTraining does)."""
    if path := source.last_result.get(_TRAIN_CHECKPOINT):
        _train_from(trial, path, weights_at(source, time_attr))
        return
    copy_checkpoint(source, trial)


def restart(trial: Trial, time_attr: str, *, forked: bool) -> None:
    """Lets a trial that failed continue from the last result that the scheduler has heard of.

    A Ray Train run gets a new name: under the old one it would continue from its own last checkpoint, whose result may
    have been lost with the trial, and the scheduler would never hear of it.

    Args:
        trial: Tune is about to start it again.
        time_attr: The entry of a result that says how far it had come.
        forked: Whether it is to start from another trial's weights, and its own last result is older.
    """
    if "run_tag" not in trial.config:
        return
    before, _, number = str(trial.config["run_tag"]).partition("-")
    if not forked and (path := trial.last_result.get(_TRAIN_CHECKPOINT)):
        _train_from(trial, path, weights_at(trial, time_attr))
    tag = str(trial.config["run_tag"]).partition("-")[0]
    tag = f"{tag}-{int(number or 0) + 1 if tag == before else 1}"
    trial.set_config({**trial.config, "run_tag": tag})


def _train_from(trial: Trial, path: str, samples: float) -> None:
    """A Ray Train run that continues needs a new name: samples never fall, so they make one."""
    trial.set_config({**trial.config, "resume_from": path, "run_tag": f"{samples:.12g}"})


def note(trial: Trial, reason: str) -> None:
    """Adds the reason why a trial was stopped to its last result."""
    set_last_result(trial, {**trial.last_result, STOP_REASON: reason})


def disk_error(error: BaseException | None) -> OSError | None:
    """The error, if it says that a disk is full or broken, which says nothing about what was to be written there."""
    return error if isinstance(error, OSError) and error.errno in _DISK else None


def disk_failure(trial: Trial) -> OSError | None:
    """What a trial has failed with, if the disk is to blame."""
    return disk_error(last_error(trial))


def may_be_retried(trial: Trial) -> bool:
    """Whether it makes sense to start a trial that has failed again."""
    return not isinstance(last_error(trial), NoRetryError)


def failure_reason(trial: Trial) -> str:
    """Why a trial has failed: what died, or the last line of its traceback, which names the error."""
    error = last_error(trial)
    if isinstance(error, NoRetryError):
        return f"failed: {error}"
    if isinstance(error, RayActorError):
        return f"failed: {what_died(error)}"
    file = trial.error_file
    lines = Path(file).read_text().strip().splitlines() if file and Path(file).exists() else []
    return f"failed: {lines[-1].strip()}" if lines else "failed"


def what_died(error: RayActorError) -> str:
    """Which process or node is gone, in a line."""
    text = str(error)
    about = dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)
    name = about.get("class_name", "").rpartition(".")[2] or "an actor"
    where = f" on {about['ip']}" if "ip" in about else ""
    died = f"process {about['pid']} ({name}){where} died" if "pid" in about else f"{name}{where} died"
    if "node has died" in text:
        return f"{died} with its node"
    return f"{died}: its node ran low on memory" if "low on memory" in text else died


def last_error(trial: Trial) -> BaseException | None:
    """What a trial has failed with last."""
    file = trial.pickled_error_file
    if not file or not Path(file).exists():
        return None
    try:
        error: BaseException | None = cloudpickle.loads(Path(file).read_bytes())
    except Exception:  # an error that cannot be unpickled says nothing here, and must not end the experiment
        return None
    return error.cause if isinstance(error, RayTaskError) else error
