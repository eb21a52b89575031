"""Opens the MLflow tracking store of an experiment; safe for runs that start concurrently."""

from __future__ import annotations

import logging
import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

# Disables telemetry, and does not print the tracking URI, which may contain a password.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# The default of seven retries delays a run by four minutes per call if the server is down.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from adaptive_ray.errors import UserError

#: Makes the MLflow UI show runs and metrics instead of traces.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
#: Timeout in seconds while another run creates the same database; that takes up to 20 on a busy machine.
_TIMEOUT = 120


def open_experiment(uri: str, name: str, runs_dir: Path) -> tuple[MlflowClient, str]:
    """Returns a client and the ID of the experiment, which is created if it does not exist.

    Artifacts of a local database are stored in ``runs_dir``.

    Raises:
        UserError: The store cannot be opened, or the experiment was deleted.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It logs tracebacks of errors that it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        with _locked(uri):
            client = MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                # A server has its own artifact location.
                location = runs_dir.as_uri() + "/mlartifacts" if uri.startswith("sqlite:") else None
                try:
                    return client, str(client.create_experiment(name, artifact_location=location, tags=_KIND))
                except MlflowException as error:
                    if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                        raise
                    experiment = client.get_experiment_by_name(name)  # another run created it
    except Timeout as error:
        raise UserError(
            f"{error.lock_file}: timed out after {_TIMEOUT} s while another run creates the MLflow database; "
            f"try again or stop that run"
        ) from None
    except Exception as error:  # stores and drivers raise errors of many types
        raise UserError(unusable(uri, error)) from None
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(
            f"tracking.experiment = {name!r}: deleted in MLflow at {public(uri)}; restore it with: "
            f"MLFLOW_TRACKING_URI={public(uri)} {restore}; or use another name: --set tracking.experiment=NAME"
        )
    return client, str(experiment.experiment_id)


def unusable(uri: str, error: Exception) -> str:
    """Formats an error of a store as one line without passwords."""
    kind = "server is unavailable" if uri.startswith(("http:", "https:")) else "cannot open its store"
    return public(f"MLflow {kind} at {uri}: {first_reason(error)}")


def first_reason(error: Exception) -> str:
    """The first informative line of an error message."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result of")]
    return lines[0] if lines else type(error).__name__


def public(text: str) -> str:
    """Removes user names and passwords from all URLs in a text."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _locked(uri: str) -> AbstractContextManager[object]:
    """A lock next to a database file: concurrent creation of the tables would fail."""
    place, separator, file = uri.partition("sqlite:///")
    return FileLock(f"{file.partition('?')[0]}.lock", timeout=_TIMEOUT) if separator and not place else nullcontext()
