"""One candidate as a Ray Tune trial: a function that runs a Ray Train run and passes its reports on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray import ObjectRef, tune

from trainables.on_ray.failures import RETRIES, RetryLostWorkers, Workers, as_failure
from trainables.on_ray.process_group import ProcessGroupConfig, train_in_worker
from trainables.on_ray.ray_compat import (
    DataParallelTrainer,
    DatasetsCallback,
    PlacementGroupCleanerCallback,
    TrainingFailedError,
)
from trainables.settings import TrainSettings


def run_trial(
    config: dict[str, Any],
    *,
    settings: Mapping[str, TrainSettings],
    data: list[ObjectRef],
    storage: str,
    clusters: dict[str, Any] | None = None,
) -> None:
    """Trains one candidate; a changed ``workers``, ``resume_from`` and ``run_tag`` make it a later phase.

    Args:
        config: ``candidate`` (a key of ``settings``); ``swap`` (``SwapSettings``, or None: the batch size does not
            change within the run); ``workers``, and for each ``cpus``, ``gpus``, ``threads`` and optionally ``memory``;
            ``resume_from`` (path of a checkpoint, or None); ``run_tag`` (a Ray Train run's name is its identity: a
            phase needs its own).
        settings: Of each candidate, by its key.
        data: One reference to ``TrainingData`` (in a list, so that Ray passes the reference on and not the data).
        storage: Where runs and checkpoints are kept; all nodes must reach it. No checkpoint is ever deleted here.
        clusters: See ``trainables.on_ray.worker.train_worker``.

    Workers that die, alone or with their node, are started again from the last checkpoint. A trial or a controller that
    dies is Tune's to start again; see ``schedulers.tune.trials.restart``.

    Raises:
        NoRetryError: The run failed and would fail again; the message is the cause.
        RuntimeError: The run failed where it was.
    """
    trial_id = tune.get_context().get_trial_id()
    resources = {"CPU": config["cpus"]}
    if config["gpus"]:
        resources["GPU"] = config["gpus"]
    trainer = Trainer(
        train_in_worker,
        train_loop_config={
            "settings": settings[config["candidate"]].with_swap(config.get("swap")),
            "data": data[0],
            "clusters": clusters,
            "threads": config["threads"],
            "gpus": config["gpus"],
            "memory": config.get("memory"),
            "resume_from": config["resume_from"],
        },
        backend_config=ProcessGroupConfig(gpus=bool(config["gpus"])),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config["workers"], use_gpu=bool(config["gpus"]), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=_unused(Path(storage), f"{trial_id}-{config['run_tag']}"),
            storage_path=storage,
            # All checkpoints are kept: workers run ahead, and only the driver knows what it has written down.
            callbacks=[Workers()],
            failure_config=ray.train.FailureConfig(max_failures=RETRIES),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise as_failure(error) from None


def _unused(storage: Path, name: str) -> str:
    """A Ray Train run's name that is not taken.

    Under its old name a trial that is started again would resume from whatever its workers saved last, also from
    what Tune never heard of, and Ray Train would refuse a folder from which older checkpoints were deleted.
    """
    names = itertools.chain([name], (f"{name}-{attempt}" for attempt in itertools.count(2)))
    return next(name for name in names if not (storage / name).exists())


#: Callbacks whose actor is a process that nobody needs. There are no datasets of Ray Data; and the driver frees what
#: dead trials had reserved (``adaptive_ray.ray_cluster.placement``), also if their workers were just starting.
_LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Retries lost workers, and starts fewer processes than Ray's own."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        workers = [each for each in self.run_config.callbacks if isinstance(each, Workers)]
        return [*workers, *(each for each in callbacks if not isinstance(each, _LEFT_OUT))]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = RetryLostWorkers(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**{**arguments, "failure_policy": policy})
