"""Runs the final evaluation as a Ray task on the device that the winner had."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

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
    """Evaluates encoders in a Ray task, on any node of the cluster.

    Args:
        cpus: CPU cores of the task, and threads of torch.
        gpus: Fraction of a GPU; 0: it computes on the CPU.
        seconds: Time limit of an attempt.
    """

    cpus: float
    gpus: float
    seconds: float

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
            held_out: Test images and labels.
            limit: Maximum number of training images.
        """
        release_places()  # of the trials, which are over
        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)
        error: Exception
        for _ in range(_ATTEMPTS):
            try:
                self._wait_for_resources(remote(_nothing).remote())
                threads = max(int(self.cpus), 1)
                return self._result(
                    remote(_evaluate).remote(encoder, settings, data, held_out, limit, threads, self.gpus)
                )
            except TimeoutError as late:
                return failed(late)
            except RayTaskError as raised:  # by the evaluation itself: it would fail again
                return failed(raised.cause)
            except RayError as lost:  # the process or its node died
                _log.debug("the evaluation failed", exc_info=True)
                error = lost
        return failed(error)

    def _wait_for_resources(self, running: ObjectRef) -> None:
        """Waits for a task with the same resources; its process is used again."""
        try:
            ray.get(running, timeout=_PLACEMENT_SECONDS)
        except GetTimeoutError:
            ray.cancel(running, force=True)
            wanted = {"CPU": self.cpus, "GPU": self.gpus}
            raise TimeoutError(no_place([wanted], _PLACEMENT_SECONDS)) from None

    def _result(self, running: ObjectRef) -> Evaluation:
        try:
            evaluation: Evaluation = ray.get(running, timeout=self.seconds)
        except GetTimeoutError:
            ray.cancel(running, force=True)
            raise TimeoutError(f"the evaluation was not finished after {self.seconds:,.0f} seconds") from None
        return evaluation


def _nothing() -> None:
    """Only occupies resources."""


def _evaluate(
    encoder: Encoder,
    settings: TrainSettings,
    data: TrainingData,
    held_out: HeldOut,
    limit: int,
    threads: int,
    gpus: float,
) -> Evaluation:
    torch.set_num_threads(threads)
    device = torch.device("cuda", torch.cuda.current_device()) if gpus else torch.device("cpu")
    if gpus:
        share_gpu(device, gpus)
    untrained = partial(initial_encoder, settings, data, pretrained=False)
    return evaluate(encoder, untrained, data.images, held_out, limit=limit, device=device)
