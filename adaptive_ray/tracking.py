"""MLflow: a parent run for the experiment, a nested run per candidate, curves over samples."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

# A server's address may hold a password, and this is a library that a person did not ask to report home.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow's own seven retries would hold a run up for four minutes at every call to a server that is gone.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)

from adaptive_ray.config import ExperimentConfig
from adaptive_ray.errors import UserError
from adaptive_ray.run_directory import RunDirectory
from schedulers import Candidate

#: Opens MLflow's page with the runs' metrics, and not with the traces of chats.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_SOURCE = {MLFLOW_SOURCE_NAME: "adaptive-ray", MLFLOW_SOURCE_TYPE: "JOB"}

_log = logging.getLogger(__name__)

#: What is logged of every report, over samples.
_CURVES = (
    "reference_loss",
    "train_loss",
    "train_loss_above_chance",
    "batch_size",
    "accumulation",
    "images_per_update",
    "batches_per_update",
    "information",
    "informed",
    "learning_rate",
    "images_per_second",
    "data_wait",
    "alignment",
    "uniformity",
    "rankme",
    "forecast",
    "surprise",
)


class Tracker:
    """Writes a run to MLflow as it happens. A server that stops answering is reported once and does not stop the run.

    Args:
        config: Its ``tracking`` settings say where.
        directory: Remembers the MLflow runs, so that a resumed run goes on in them.

    Raises:
        UserError: The tracking server cannot be reached, or refuses.
    """

    def __init__(self, config: ExperimentConfig, directory: RunDirectory) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._failed = False
        runs_dir = directory.path.parent
        default = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_dir / 'mlflow.db'}"
        self.uri = config.tracking.uri or default
        try:
            self._client = MlflowClient(tracking_uri=self.uri)
            self.experiment_id = self._experiment(config.tracking.experiment, runs_dir.as_uri() + "/mlartifacts")
            file = directory.path / "mlflow.json"
            if file.exists():
                known = directory.read_json("mlflow.json")
            else:
                known = self._create_runs(config, directory.name)
                directory.write_json("mlflow.json", known)
        except UserError:
            raise
        except Exception as error:  # whatever a store, a driver or a server raises, the address is of no use
            raise UserError(_public(f"MLflow does not answer at {self.uri}: {str(error).splitlines()[0]}")) from None
        self.run_id: str = known["parent"]
        self._children: dict[str, str] = known["candidates"]

    def _experiment(self, name: str, artifacts: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        # Only a database on this machine keeps artifacts beside itself; a server knows its own place for them.
        location = artifacts if self.uri.startswith("sqlite:") else None
        return str(self._client.create_experiment(name, artifact_location=location, tags=_KIND))

    def _create_runs(self, config: ExperimentConfig, name: str) -> dict[str, Any]:
        tags = _SOURCE | {"adaptive_ray": "experiment"}
        parent = self._client.create_run(self.experiment_id, run_name=name, tags=tags)
        settings = _flatten(config.model_dump(mode="json", exclude={"tracking"}, exclude_none=True))
        self._client.log_batch(parent.info.run_id, params=[Param(key, str(value)[:500]) for key, value in settings])
        children = {}
        for candidate in config.choices:
            tags = _SOURCE | {"adaptive_ray": "candidate", MLFLOW_PARENT_RUN_ID: parent.info.run_id}
            child = self._client.create_run(self.experiment_id, run_name=f"{name}/{candidate.key}", tags=tags)
            for param in ("batch_size", "accumulation"):
                self._client.log_param(child.info.run_id, param, getattr(candidate, param))
            children[candidate.key] = child.info.run_id
        return {"parent": parent.info.run_id, "candidates": children}

    def report(self, candidate: str, metrics: Mapping[str, Any]) -> None:
        """One report of one candidate."""
        self._log_curves(self._children[candidate], [metrics])

    def dropped(self, candidate: str, reason: str) -> None:
        """Ends a candidate's run."""
        self._guard(self._client.set_tag, self._children[candidate], "verdict", f"dropped: {reason}")
        self._guard(self._client.set_terminated, self._children[candidate])

    def racing(self, candidate: str, reason: str) -> None:
        """Opens a candidate's run again for another race."""
        self._guard(self._client.set_tag, self._children[candidate], "verdict", reason)
        self._guard(self._client.update_run, self._children[candidate], RunStatus.to_string(RunStatus.RUNNING))

    def finished(self, winner: str, result: Mapping[str, Any], reports: Iterable[Mapping[str, Any]]) -> None:
        """Ends the winner's and the parent run: results, the winner's curves, and the directory's files."""
        self._guard(self._client.set_tag, self._children[winner], "verdict", "won")
        self._guard(self._client.set_terminated, self._children[winner])
        self._log_curves(self.run_id, list(reports))
        now = int(time.time() * 1000)
        numbers = [Metric(key, float(value), now, 0) for key, value in result.items() if isinstance(value, int | float)]
        self._guard(self._client.log_batch, self.run_id, metrics=numbers)
        chosen = Candidate(result["chosen_batch_size"], result["chosen_accumulation"])
        note = (
            f"**Batch size {chosen.key}** was chosen out of {', '.join(self._children)}; linear probe "
            f"{result['probe_accuracy']:.1%}. Curves, forecasts and reasons: artifact `report.html`."
        )
        self._guard(self._client.set_tag, self.run_id, MLFLOW_RUN_NOTE, note)

    def artifacts(self, directory: RunDirectory, names: Iterable[str]) -> None:
        """Stores files of the run's directory, and ends the parent run."""
        for name in names:
            self._guard(self._client.log_artifact, self.run_id, str(directory.path / name))
        self._guard(self._client.set_terminated, self.run_id)

    def failed(self) -> None:
        """Marks every run that has not ended."""
        for run_id in [*self._children.values(), self.run_id]:
            self._guard(self._client.set_terminated, run_id, RunStatus.to_string(RunStatus.FAILED))

    def _log_curves(self, run_id: str, reports: Iterable[Mapping[str, Any]]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(report[name]), now, int(report["samples_seen"]))
            for report in reports
            for name in _CURVES
            if report.get(name) is not None
        ]
        for start in range(0, len(metrics), 1000):  # MLflow's limit for one call
            self._guard(self._client.log_batch, run_id, metrics=metrics[start : start + 1000])

    def _guard(self, call: Any, *arguments: Any, **keywords: Any) -> None:
        try:
            call(*arguments, **keywords)
        except (MlflowException, OSError) as error:
            if not self._failed:
                _log.warning(_public(f"MLflow at {self.uri} stopped answering: {str(error).splitlines()[0]}"))
            self._failed = True


def _public(text: str) -> str:
    """A text with the user and the password taken out of every address."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, value))
    return flat
