"""Private names of Ray Train 2.60 that this package uses. Nothing else here imports any.

Ray may change them in any release: pyproject.toml pins ``ray<2.61``, and tests/trainables/on_ray/test_ray_compat.py
says what each is needed for.
"""

from ray.train._internal.session import get_session
from ray.train._internal.utils import get_address_and_port
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

__all__ = [
    "ControllerError",
    "DataParallelTrainer",
    "DatasetsCallback",
    "DefaultFailurePolicy",
    "FailureDecision",
    "PlacementGroupCleanerCallback",
    "TrainController",
    "TrainingFailedError",
    "WorkerGroupCallback",
    "WorkerGroupError",
    "WorkerHealthCheckFailedError",
    "WorkerHealthCheckTimeoutError",
    "get_address_and_port",
    "get_session",
]
