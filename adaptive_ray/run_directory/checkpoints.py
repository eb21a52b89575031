"""Which checkpoints of a run are kept, and which one a candidate is resumed from."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune

from adaptive_ray.errors import UserError
from adaptive_ray.experiment.tune_callback import METRIC
from adaptive_ray.run_directory.directory import RunDirectory
from trainables.training.checkpoint import CHECKPOINT_FILE, UNFINISHED, checkpoint_damage

#: Of each candidate; if the last one is damaged, there is one before.
_KEPT = 2


class Checkpoints(tune.Callback):  # type: ignore[misc]
    """Deletes what no longer needs to be kept: all but the last two checkpoints that a candidate's reports name.

    Ray Train deletes none. Its workers run up to five reports ahead of the driver, so that the last three that they
    saved need not be those that a report in the run's directory names. As a callback of Tune's, this comes after the
    one that writes reports.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        #: Each candidate's checkpoints that are kept, in the order of its reports.
        self._kept: dict[str, list[Path]] = {}
        self._damaged: set[Path] = set()
        self._error: UserError | None = None
        for report in directory.reports():
            if path := report.get("checkpoint_path"):
                kept = self._kept.setdefault(report["candidate"], [])
                kept[:] = [*kept, Path(path)][-_KEPT:]

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores callbacks to restore them; this one is made for every session

    def newest(self, candidate: str) -> tuple[dict[str, Any], str | None] | None:
        """Where a candidate may be resumed.

        Returns:
            Its last sound report with a whole checkpoint, and why it is not its last one, if so; None: it has none.

        Raises:
            UserError: It has reported, and none of its checkpoints is whole.
        """
        reports = [report for report in self._directory.reports() if report["candidate"] == candidate]
        kept = self._kept.get(candidate, [])
        damages: list[str] = []
        for report in reversed(reports):
            if not report.get("checkpoint_path") or report.get(METRIC, 0.0) is None:
                continue  # a loss that is no number is of weights that are none
            path = Path(report["checkpoint_path"])
            if (damage := checkpoint_damage(path)) is None:
                return report, damages[0] if damages else None
            damages.append(damage)
            self._damaged.add(path)
            kept[:] = [each for each in kept if each != path]  # else it would soon be the only one beside a new one
        if not damages:
            return None
        raise UserError(
            f"{damages[0]}, and no older checkpoint of batch size {candidate} is whole; restore the file from a copy, "
            f"or start the run again under another name: "
            f"adaptive-ray run {self._directory.path / 'config.yaml'} --name OTHER"
        )

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if path := result.get("checkpoint_path"):
            self.reported(trial.config["candidate"], Path(path))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Before Tune starts a trial again: from the last checkpoint that is whole."""
        path, candidate = trial.config["resume_from"], trial.config["candidate"]
        if not path or (damage := checkpoint_damage(Path(path))) is None:
            return
        try:
            found = self.newest(candidate) if Path(path) in self._kept.get(candidate, []) else None
            if found is None:  # another candidate's weights
                raise UserError(f"{damage}; resume the run with: adaptive-ray run --resume {self._directory.path}")
            trial.set_config({**trial.config, "resume_from": found[0]["checkpoint_path"]})
        except UserError as error:
            self._error = error  # Tune would make a traceback of it here

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Ends the run if a trial has no checkpoint to start from.

        Raises:
            UserError: There is none that is whole, or it is another candidate's.
        """
        if self._error is not None:
            raise self._error

    def reported(self, candidate: str, checkpoint: Path) -> None:
        """Takes note that a written report names a checkpoint, and deletes what it makes superfluous."""
        try:
            _flush(checkpoint / CHECKPOINT_FILE)
        except FileNotFoundError:
            return  # somebody has deleted it: older ones are needed
        kept = self._kept.setdefault(candidate, [])
        superfluous = set(kept)
        if kept and kept[-1].parent != checkpoint.parent:  # the Ray Train run before this one has ended
            superfluous.update(_checkpoints_in(kept[-1].parent))
        kept[:] = [*kept, checkpoint][-_KEPT:]
        for each in superfluous.difference(kept):
            _delete(each)

    def delete_unnamed(self) -> None:
        """Deletes checkpoints that are kept for no report: workers had run ahead when they were stopped.

        Only to be called while nothing trains. What was found to be damaged is left to whoever may want to repair it.
        """
        kept = self._damaged.union(*self._kept.values())
        for run in (self._directory.path / "train").glob("*"):
            for checkpoint in itertools.chain(_checkpoints_in(run), run.glob(f"{UNFINISHED}*")):
                if checkpoint not in kept:
                    _delete(checkpoint)


def _checkpoints_in(train_run: Path) -> Iterator[Path]:
    return (path for path in train_run.glob("checkpoint_*") if path.is_dir())


def _flush(file: Path) -> None:
    """Waits until a file is on the disk, whatever happens to the machine afterwards."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint, ignore_errors=True)
