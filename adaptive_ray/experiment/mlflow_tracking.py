"""Logs a run to MLflow: a parent run with one nested run per candidate; metrics are logged over samples."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Literal

from mlflow.entities import LifecycleStage, Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.errors import UserError
from adaptive_ray.experiment.mlflow_store import first_reason, open_experiment, public, unusable
from adaptive_ray.ray_cluster.signals import held_back
from adaptive_ray.report.accuracies import missing, percent, reference_loss
from adaptive_ray.run_directory.directory import RunDirectory
from adaptive_ray.run_directory.inputs import flat
from schedulers import Candidate
from trainables.report import LOGGED, TrainingReport

_SOURCE = {MLFLOW_SOURCE_NAME: "adaptive-ray", MLFLOW_SOURCE_TYPE: "JOB"}
_RUNNING = RunStatus.to_string(RunStatus.RUNNING)

_log = logging.getLogger(__name__)


class Tracker:
    """Logs a run to MLflow. If the server becomes unavailable, it is reported once and the run continues.

    The MLflow run IDs are stored in ``directory``, so that a resumed run continues them. If the MLflow runs no longer
    exist, or the directory is a copy with another name, new ones are created with all reports.

    Raises:
        UserError: The tracking server cannot be reached or returns an error.
    """

    def __init__(self, config: ExperimentConfig, directory: RunDirectory) -> None:
        self._failed = False
        self._open: set[str] = set()  # runs with status RUNNING
        self._interrupted: set[str] = set()  # runs that an earlier session left as KILLED or FAILED
        self.run_id, self._children = "", dict[str, str]()
        runs_dir, file = directory.path.parent, directory.path / "mlflow.json"
        default = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_dir / 'mlflow.db'}"
        self.uri = config.tracking.uri or default
        self._client, self.experiment_id = open_experiment(self.uri, config.tracking.experiment, runs_dir)
        try:
            if not (file.exists() and self._continue(directory.read_json(file.name), directory.name)):
                self._create_runs(config, directory)
                runs = {"run": directory.name, "parent": self.run_id, "candidates": self._children}
                directory.write_json(file.name, runs)
        except (MlflowException, OSError) as error:
            self.end("FAILED")
            if isinstance(error, OSError):
                raise
            raise UserError(unusable(self.uri, error)) from None

    def _continue(self, known: Mapping[str, Any], name: str) -> bool:
        """Reopens the runs of an earlier session. Returns False if one no longer exists or they are of another run."""
        if known.get("run", name) != name:
            return False  # the directory is a copy
        runs = []
        for run_id in [*known["candidates"].values(), known["parent"]]:
            try:
                runs.append(self._client.get_run(run_id))
            except MlflowException as error:
                if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                    return False
                raise
        if any(run.info.lifecycle_stage == LifecycleStage.DELETED for run in runs):
            return False
        self.run_id, self._children = known["parent"], known["candidates"]
        self._open = {run.info.run_id for run in runs if run.info.status == _RUNNING}
        self._interrupted = {run.info.run_id for run in runs if run.info.status in ("KILLED", "FAILED")}
        self._reopen(self.run_id)
        return True

    def _create_runs(self, config: ExperimentConfig, directory: RunDirectory) -> None:
        name = directory.name
        self.run_id = self._create_run(name, _SOURCE | {"adaptive_ray": "experiment"})
        settings = flat(config.model_dump(mode="json", exclude={"tracking"}, exclude_none=True))
        self._client.log_batch(self.run_id, params=[Param(key, str(value)[:500]) for key, value in settings])
        for candidate in config.choices:
            tags = _SOURCE | {"adaptive_ray": "candidate", MLFLOW_PARENT_RUN_ID: self.run_id}
            child = self._children[candidate.key] = self._create_run(f"{name}/{candidate.key}", tags)
            for param in ("batch_size", "accumulation"):
                self._client.log_param(child, param, getattr(candidate, param))
            self._log_curves(child, directory.reports_of(candidate.key))

    def _create_run(self, name: str, tags: Mapping[str, str]) -> str:
        run_id = str(self._client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id)
        self._open.add(run_id)
        return run_id

    def report(self, candidate: str, report: TrainingReport) -> None:
        """Logs the metrics of a report."""
        self._reopen(self._children[candidate])
        self._log_curves(self._children[candidate], [report])

    def pruned(self, candidate: str, reason: str) -> None:
        """Ends the run of a pruned candidate."""
        self._guard(self._client.set_tag, self._children[candidate], "state", f"pruned: {reason}")
        self._close(self._children[candidate], "FINISHED")

    def racing(self, candidate: str, reason: str) -> None:
        """Reopens the run of a candidate for another race."""
        self._guard(self._client.set_tag, self._children[candidate], "state", reason)
        self._reopen(self._children[candidate])

    def finished(self, winner: str, result: Mapping[str, Any], reports: Iterable[TrainingReport]) -> None:
        """Ends the run of the winner; logs the results and the winner's metrics to the parent run."""
        self._guard(self._client.set_tag, self._children[winner], "state", "won")
        self._close(self._children[winner], "FINISHED")
        self._log_curves(self.run_id, reports)
        now = int(time.time() * 1000)
        numbers = [
            Metric(key, float(value), now, 0)
            for key, value in result.items()
            if isinstance(value, int | float) and key not in LOGGED  # else the last report already logged it
        ]
        self._guard(self._client.log_batch, self.run_id, metrics=numbers)
        chosen = Candidate(result["chosen_batch_size"], result["chosen_accumulation"])
        lines = [
            f"**Batch size {chosen.key}** was chosen from {', '.join(self._children)}; linear classifier "
            f"{percent(result['probe_accuracy'])}, {reference_loss(result)}. See the artifact `report.html`.",
            *(f"- {line}" for line in missing(result)),
        ]
        note = "\n\n".join(lines)
        self._guard(self._client.set_tag, self.run_id, MLFLOW_RUN_NOTE, note)

    def artifacts(self, directory: RunDirectory, names: Iterable[str]) -> None:
        """Logs files of the run's directory as artifacts and ends all open runs."""
        for name in names:
            self._guard(self._client.log_artifact, self.run_id, str(directory.path / name))
        self.end("FINISHED")

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Ends all open runs, the parent run last.

        With FINISHED, runs that an earlier session left as KILLED or FAILED are finished too.
        """
        ended = self._open | self._interrupted if status == "FINISHED" else self._open
        for run_id in sorted(ended, key=lambda run_id: run_id == self.run_id):
            if not self._close(run_id, status):
                return  # the server is unavailable: do not wait for more timeouts

    def _close(self, run_id: str, status: str) -> bool:
        closed = self._guard(self._client.set_terminated, run_id, status)
        if closed:
            self._open.discard(run_id)
            self._interrupted.discard(run_id)
        return closed

    def _reopen(self, run_id: str) -> None:
        if run_id not in self._open and self._guard(self._client.update_run, run_id, _RUNNING):
            self._open.add(run_id)
            self._interrupted.discard(run_id)

    def _log_curves(self, run_id: str, reports: Iterable[TrainingReport]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, report.samples_seen)
            for report in reports
            for name in LOGGED
            if (value := getattr(report, name)) is not None
        ]
        for start in range(0, len(metrics), 1000):  # limit of MLflow per call
            self._guard(self._client.log_batch, run_id, metrics=metrics[start : start + 1000])

    def _guard(self, call: Any, *arguments: Any, **keywords: Any) -> bool:
        """Calls MLflow; returns whether it succeeded. Only the first failure is logged."""
        # A signal in the middle of a transaction would leave the database locked for the calls that follow.
        uninterrupted = nullcontext() if self.uri.startswith("http") else held_back()
        try:
            with uninterrupted:
                call(*arguments, **keywords)
        except (MlflowException, OSError) as error:
            if not self._failed:
                _log.warning(public(f"MLflow at {self.uri} is unavailable: {first_reason(error)}"))
            self._failed = True
            return False
        return True
