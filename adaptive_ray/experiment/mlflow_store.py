"""Where MLflow keeps an experiment: opening its database or server, once for all runs that start together."""

from __future__ import annotations

import logging
import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

# A server's address may hold a password, and this is a library that a person did not ask to report home.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow's own seven retries would hold a run up for four minutes at every call to a server that is gone.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from adaptive_ray.errors import UserError

#: Opens MLflow's page with the runs' metrics, and not with the traces of chats.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
#: Seconds to wait for another run that sets up the same database; that takes 10 to 20 on a busy machine.
_PATIENCE = 120


def open_experiment(uri: str, name: str, runs_dir: Path) -> tuple[MlflowClient, str]:
    """A client of the store at ``uri``, and the id of the experiment ``name``, which is made if it is not there.

    Args:
        uri: Of a database or a server.
        name: Of the experiment.
        runs_dir: Holds the artifacts of a database on this machine.

    Raises:
        UserError: Nothing answers there, the database is damaged, or the experiment has been deleted.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints a traceback of each error of a database, which is raised as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        with _alone(uri):
            client = MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                # Only a database on this machine keeps artifacts beside itself; a server knows its own place for them.
                location = runs_dir.as_uri() + "/mlartifacts" if uri.startswith("sqlite:") else None
                try:
                    return client, str(client.create_experiment(name, artifact_location=location, tags=_KIND))
                except MlflowException as error:
                    if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                        raise
                    experiment = client.get_experiment_by_name(name)  # another run has just made it
    except Timeout as error:
        raise UserError(
            f"{error.lock_file} has been held by another run for {_PATIENCE} s while it sets up MLflow's database; "
            f"try again, or stop that run"
        ) from None
    except Exception as error:  # whatever a store, a driver or a server raises, the address is of no use
        raise UserError(unusable(uri, error)) from None
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(
            f"tracking.experiment = {name!r}: this experiment has been deleted in MLflow at {public(uri)}; restore it "
            f"with: MLFLOW_TRACKING_URI={public(uri)} {restore}; or use another: --set tracking.experiment=NAME"
        )
    return client, str(experiment.experiment_id)


def unusable(uri: str, error: Exception) -> str:
    """What is wrong with a store, in one line without a password."""
    kind = "does not answer" if uri.startswith(("http:", "https:")) else "cannot use its store"
    return public(f"MLflow {kind} at {uri}: {first_reason(error)}")


def first_reason(error: Exception) -> str:
    """The line of an error that says what is wrong."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result of")]
    return lines[0] if lines else type(error).__name__


def public(text: str) -> str:
    """A text with the user and the password taken out of every address."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _alone(uri: str) -> AbstractContextManager[object]:
    """A lock beside a database file: two processes that make the same tables at the same time both fail."""
    place, separator, file = uri.partition("sqlite:///")
    return FileLock(f"{file.partition('?')[0]}.lock", timeout=_PATIENCE) if separator and not place else nullcontext()
