"""Pauses, forks and restarts Ray Tune trials, and explains why they failed."""

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

from schedulers.tune.ray_compat import TuneController, copy_checkpoint, set_last_result

#: Entry of a trial's last result: why the scheduler stopped it.
STOP_REASON = "stop_reason"
#: Entry of a result: why the trial lost workers since its last result and resumed from its last checkpoint.
RESTARTED = "restarted"
#: Entry of the results of ``ray.tune.integration.ray_train``.
_TRAIN_CHECKPOINT = "checkpoint_path"
#: The disk is full, over quota, read-only or broken.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class NoRetryError(RuntimeError):
    """Raised by a trainable that would fail again: its trial is not retried, whatever Tune's ``FailureConfig`` says."""


def is_function(trial: Trial) -> bool:
    """Returns whether the trainable is a function (and not a class)."""
    return issubclass(trial.get_trainable_cls(), FunctionTrainable)


def can_be_resumed(trial: Trial, result: Mapping[str, Any] | None = None) -> bool:
    """Returns whether a trial that is paused after ``result`` (None: its last one) would resume from there."""
    result = trial.last_result if result is None else result
    if is_function(trial):
        return bool(result.get(_TRAIN_CHECKPOINT) or result.get("checkpoint_dir_name"))
    return trial.get_trainable_cls().save_checkpoint is not Trainable.save_checkpoint


def pause(controller: TuneController, trial: Trial, result: Mapping[str, Any], samples: float) -> str:
    """Pauses a trial after its result so that it resumes from there. Returns the action for Tune."""
    if not result.get(_TRAIN_CHECKPOINT):
        return "PAUSE"  # Tune saves and restores the trial
    _resume_from(trial, result[_TRAIN_CHECKPOINT], samples)
    controller.pause_trial(trial, should_checkpoint=False)
    return "NOOP"


def pause_pruned(controller: TuneController, trial: Trial) -> str:
    """Pauses a pruned trial, whose weights are not needed. Returns the action for Tune.

    A trial that is being saved is saved once more. Otherwise Tune 2.60 would stop it after it has resumed.
    """
    controller.pause_trial(trial, should_checkpoint=trial.is_saving)
    return "NOOP"


def weights_at(trial: Trial, time_attr: str) -> float:
    """Returns the samples at which the weights were saved that a paused trial would resume from; -1 without any."""
    saved = trial.last_result
    if not saved.get(_TRAIN_CHECKPOINT):
        checkpoint = trial.latest_checkpoint_result
        saved = checkpoint.metrics if checkpoint is not None else {}
    return float(flatten_dict(saved).get(time_attr, -1.0))


def fork(trial: Trial, source: Trial, time_attr: str) -> None:
    """Makes a paused trial resume from the weights of another paused trial."""
    if path := source.last_result.get(_TRAIN_CHECKPOINT):
        _resume_from(trial, path, weights_at(source, time_attr))
    else:
        copy_checkpoint(source, trial)


def restart(trial: Trial, time_attr: str, *, forked: bool) -> None:
    """Makes a failed trial resume from the last result that the scheduler has seen.

    A Ray Train run gets a new ``run_tag``. With the old one it would resume from its own last checkpoint, whose result
    may have been lost with the trial and would never be reported. If it has ``forked``, it is to start from another
    trial's weights, which are newer than its own last result.
    """
    if "run_tag" not in trial.config:
        return
    before, _, number = str(trial.config["run_tag"]).partition("-")
    if not forked and (path := trial.last_result.get(_TRAIN_CHECKPOINT)):
        _resume_from(trial, path, weights_at(trial, time_attr))
    tag = str(trial.config["run_tag"]).partition("-")[0]
    tag = f"{tag}-{int(number or 0) + 1 if tag == before else 1}"
    trial.set_config({**trial.config, "run_tag": tag})


def _resume_from(trial: Trial, path: str, samples: float) -> None:
    """Sets the checkpoint of a Ray Train run. It needs a new name; samples never decrease, so they are unique."""
    trial.set_config({**trial.config, "resume_from": path, "run_tag": f"{samples:.12g}"})


def note(trial: Trial, reason: str) -> None:
    """Adds the reason why a trial was stopped to its last result."""
    set_last_result(trial, {**trial.last_result, STOP_REASON: reason})


def disk_error(error: BaseException | None) -> OSError | None:
    """Returns the error if it says that a disk is full or broken, which does not depend on the candidate."""
    return error if isinstance(error, OSError) and error.errno in _DISK_ERRORS else None


def disk_failure(trial: Trial) -> OSError | None:
    """Returns the error that a trial failed with, if it is a disk error."""
    return disk_error(last_error(trial))


def may_be_retried(trial: Trial) -> bool:
    """Returns whether a failed trial may succeed if it is retried."""
    return not isinstance(last_error(trial), NoRetryError)


def failure_reason(trial: Trial) -> str:
    """Returns why a trial failed: the process that died, or the last line of the traceback."""
    error = last_error(trial)
    if isinstance(error, NoRetryError):
        return f"failed: {error}"
    if isinstance(error, RayActorError):
        return f"failed: {what_died(error)}"
    file = trial.error_file
    lines = Path(file).read_text().strip().splitlines() if file and Path(file).exists() else []
    return f"failed: {lines[-1].strip()}" if lines else "failed"


def what_died(error: RayActorError) -> str:
    """Describes the process or node that died, in one line."""
    text = str(error)
    about = dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)
    name = about.get("class_name", "").rpartition(".")[2] or "an actor"
    where = f" on {about['ip']}" if "ip" in about else ""
    died = f"process {about['pid']} ({name}){where} died" if "pid" in about else f"{name}{where} died"
    if "node has died" in text:
        return f"{died} with its node"
    return f"{died}: its node ran low on memory" if "low on memory" in text else died


def last_error(trial: Trial) -> BaseException | None:
    """Returns the last error of a trial."""
    file = trial.pickled_error_file
    if not file or not Path(file).exists():
        return None
    try:
        error: BaseException | None = cloudpickle.loads(Path(file).read_bytes())
    except Exception:  # an error that cannot be unpickled must not end the experiment
        return None
    return error.cause if isinstance(error, RayTaskError) else error
