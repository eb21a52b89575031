"""Runs the final evaluation as a Ray task on the device that the winner had."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from adaptive_ray.experiment.evaluate import Evaluation, HeldOut, evaluate, failed
from adaptive_ray.ray_cluster.layout import Workers
from adaptive_ray.ray_cluster.nodes import Node, no_place
from adaptive_ray.ray_cluster.placement_groups import release_places
from trainables.data import TrainingData
from trainables.settings import TrainSettings
from trainables.simclr import Encoder
from trainables.training.loop import initial_encoder
from trainables.training.memory_limits import share_gpu

#: Attempts. Ray would retry a task that was killed for lack of memory without limit.
_ATTEMPTS = 2
#: Timeout in seconds for the resources of an attempt.
_PLACEMENT_SECONDS = 300.0
#: Minimum time limit of an attempt in seconds.
_LEAST_SECONDS = 1800.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationTask:
    """Evaluates encoders in a Ray task, on any node of the cluster."""

    cpus: float  # cores of the task, and threads of torch
    gpus: float  # fraction of a GPU; 0: it computes on the CPU
    seconds: float  # time limit of an attempt

    @classmethod
    def like(cls, workers: Workers, nodes: Sequence[Node], training_seconds: float) -> EvaluationTask:
        """Requests what one of ``workers`` has of a GPU, or without GPUs the cores of all of them on one node.

        The time limit is half an hour, or the duration of the training if that was longer.
        """
        together = 1 if workers.gpus else max(1, *(min(workers.on(node), workers.count) for node in nodes))
        cpus = workers.cpus * together
        # Ray accepts fractions below 1 only.
        return cls(int(cpus) if cpus > 1 else cpus, workers.gpus, max(training_seconds, _LEAST_SECONDS))

    def run(
        self, encoder: Encoder, settings: TrainSettings, data: ObjectRef, held_out: HeldOut, limit: int
    ) -> Evaluation:
        """Evaluates ``encoder``. If the task fails, the accuracies are missing, with the reason.

        Args:
            encoder: The trained encoder, on the CPU. Its weights are sent to the task's node.
            settings: Settings of its training, for the untrained encoder.
            data: Reference to ``TrainingData`` in the object store.
            held_out, limit: See ``evaluate``.
        """
        release_places()  # of the trials, which are over
        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        late = f"the evaluation was not finished after {self.seconds:,.0f} seconds"
        error: Exception
        for _ in range(_ATTEMPTS):
            try:
                # Waits for a task with the same resources; its process is used again.
                _result(remote(_nothing).remote(), _PLACEMENT_SECONDS, partial(no_place, [wanted], _PLACEMENT_SECONDS))
                running = remote(_evaluate).remote(self, encoder, settings, data, held_out, limit)
                evaluation: Evaluation = _result(running, self.seconds, lambda: late)
                return evaluation
            except TimeoutError as timeout:
                return failed(timeout)
            except RayTaskError as raised:  # by the evaluation itself: it would fail again
                return failed(raised.cause)
            except RayError as lost:  # the process or its node died
                _log.debug("the evaluation failed", exc_info=True)
                error = lost
        return failed(error)


def _result(running: ObjectRef, seconds: float, late: Callable[[], str]) -> Any:
    """Returns the result of a task; cancels it and raises ``TimeoutError`` if it is ``late``."""
    try:
        return ray.get(running, timeout=seconds)
    except GetTimeoutError:
        ray.cancel(running, force=True)
        raise TimeoutError(late()) from None


def _nothing() -> None:
    """Only occupies resources."""


def _evaluate(
    task: EvaluationTask, encoder: Encoder, settings: TrainSettings, data: TrainingData, held_out: HeldOut, limit: int
) -> Evaluation:
    torch.set_num_threads(max(int(task.cpus), 1))
    device = torch.device("cuda", torch.cuda.current_device()) if task.gpus else torch.device("cpu")
    if task.gpus:
        share_gpu(device, task.gpus)
    untrained = partial(initial_encoder, settings, data, pretrained=False)
    return evaluate(encoder, untrained, data.images, held_out, limit=limit, device=device)
