"""Keeps the last checkpoints of each candidate and selects the one to resume from."""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune

from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.directory import RunDirectory
from trainables.report import TrainingReport
from trainables.training.checkpoint import CHECKPOINT_FILE, UNFINISHED, checkpoint_problem

#: Checkpoints kept per candidate; the second is used if the last is corrupt.
_KEPT = 2


class Checkpoints(tune.Callback):  # type: ignore[misc]
    """Deletes all but the last two reported checkpoints of each candidate.

    Ray Train keeps all checkpoints, since its workers run up to five reports ahead of the driver: only checkpoints
    with a report in the run's directory count here. Must be placed after the Tune callback that writes reports.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        #: Kept checkpoints of each candidate, oldest first.
        self._kept = {
            candidate: [Path(report.checkpoint_path) for report in reports if report.checkpoint_path][-_KEPT:]
            for candidate, reports in directory.reports().items()
        }
        self._corrupt: set[Path] = set()
        self._error: UserError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks; each session creates its own

    def newest(self, candidate: str) -> tuple[TrainingReport, str | None] | None:
        """Finds the report to resume a candidate from.

        Returns:
            The last report with a valid checkpoint and a finite loss, and the problem with a later checkpoint, if any.
            None: the candidate has not reported.

        Raises:
            UserError: The candidate has reported and all its checkpoints are corrupt.
        """
        kept = self._kept.get(candidate, [])
        problems: list[str] = []
        for report in reversed(self._directory.reports().get(candidate, [])):
            if report.checkpoint_path is None or not math.isfinite(report.reference_loss):
                continue  # NaN: the weights are invalid
            path = Path(report.checkpoint_path)
            if (problem := checkpoint_problem(path)) is None:
                return report, problems[0] if problems else None
            problems.append(problem)
            self._corrupt.add(path)
            kept[:] = [each for each in kept if each != path]  # else the next report would delete the valid one
        if not problems:
            return None
        raise UserError(
            f"{problems[0]}, and no older checkpoint of batch size {candidate} is valid; restore the file from a copy, "
            f"or start a new run: "
            f"adaptive-ray run {self._directory.path / 'config.yaml'} --name OTHER"
        )

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if path := result.get("checkpoint_path"):
            self.reported(trial.config["candidate"], Path(path))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Selects the last valid checkpoint before Tune restarts a trial."""
        path, candidate = trial.config["resume_from"], trial.config["candidate"]
        if not path or (problem := checkpoint_problem(Path(path))) is None:
            return
        try:
            found = self.newest(candidate) if Path(path) in self._kept.get(candidate, []) else None
            if found is None:  # weights of another candidate
                raise UserError(f"{problem}; resume the run with: adaptive-ray run --resume {self._directory.path}")
            trial.set_config({**trial.config, "resume_from": found[0].checkpoint_path})
        except UserError as error:
            self._error = error  # Tune would log a traceback here

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Raises ``UserError`` if a trial cannot be restarted: its checkpoint is corrupt and there is no other."""
        if self._error is not None:
            raise self._error

    def reported(self, candidate: str, checkpoint: Path) -> None:
        """Registers the checkpoint of a written report and deletes older ones."""
        try:
            with (checkpoint / CHECKPOINT_FILE).open("rb") as file:
                os.fsync(file.fileno())
        except FileNotFoundError:
            return  # it was deleted: keep older ones
        kept = self._kept.setdefault(candidate, [])
        obsolete = set(kept)
        if kept and kept[-1].parent != checkpoint.parent:  # the previous Ray Train run has ended
            obsolete.update(_checkpoints_in(kept[-1].parent))
        kept[:] = [*kept, checkpoint][-_KEPT:]
        for each in obsolete.difference(kept):
            shutil.rmtree(each, ignore_errors=True)

    def delete_unnamed(self) -> None:
        """Deletes checkpoints without a report, which workers saved just before they were stopped.

        Call only while no trial is running. Corrupt checkpoints are kept for repair.
        """
        kept = self._corrupt.union(*self._kept.values())
        for run in (self._directory.path / "train").glob("*"):
            for checkpoint in itertools.chain(_checkpoints_in(run), run.glob(f"{UNFINISHED}*")):
                if checkpoint not in kept:
                    shutil.rmtree(checkpoint, ignore_errors=True)


def _checkpoints_in(train_run: Path) -> Iterator[Path]:
    return (path for path in train_run.glob("checkpoint_*") if path.is_dir())
