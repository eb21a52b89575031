"""The trainable of Ray Tune: starts a Ray Train run for one candidate and forwards its reports."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray import ObjectRef, tune

from trainables.on_ray.failures import RETRIES, RetryLostWorkers, Workers, as_failure
from trainables.on_ray.process_group import ProcessGroupConfig, train_in_worker
from trainables.on_ray.race_terms import RaceTerms
from trainables.on_ray.ray_compat import (
    DataParallelTrainer,
    DatasetsCallback,
    PlacementGroupCleanerCallback,
    TrainController,
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
    race: RaceTerms | None = None,
) -> None:
    """Trains one candidate in a Ray Train run and reports to Ray Tune.

    Workers that die, alone or with their node, are restarted from the last checkpoint. A trial that dies is restarted
    by Tune; see ``schedulers.tune.trials.restart``.

    Args:
        config: ``candidate`` (a key of ``settings``); ``swap`` (``SwapSettings``, or None: the batch size does not
            change within the run); ``workers``, and for each ``cpus``, ``gpus``, ``threads`` and optionally ``memory``;
            ``resume_from`` (path of a checkpoint, or None); ``run_tag`` (part of the Ray Train run's name; it changes
            whenever the trial is started with other workers or weights).
        settings: Settings of each candidate, by its key.
        data: One reference to ``TrainingData`` (in a list, so that Ray passes the reference and not the data).
        storage: Directory of runs and checkpoints that all nodes can reach. Checkpoints are not deleted here.
        clusters: See ``trainables.on_ray.worker.train_worker``.
        race: Terms of the race; None: the candidate trains alone.

    Raises:
        NoRetryError: The run failed and would fail again; the message is the cause.
        RuntimeError: The run failed but may succeed elsewhere.
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
            "candidate": config["candidate"],
            "race": None if race is None else dataclasses.replace(race, started=time.time()),
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
            name=_unused(Path(storage), f"batch-{config['candidate']}-{trial_id}-{config['run_tag']}"),
            storage_path=storage,
            # Workers run ahead of the driver, so only the driver knows which checkpoints can be deleted.
            callbacks=[Workers()],
            failure_config=ray.train.FailureConfig(max_failures=RETRIES),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise as_failure(error) from None


def _unused(storage: Path, name: str) -> str:
    """Returns an unused name for a Ray Train run.

    Under its old name, a restarted trial would resume from the last checkpoint of its workers, even if it was not
    reported to Tune, and Ray Train would refuse a directory from which older checkpoints were deleted.
    """
    names = itertools.chain([name], (f"{name}-{attempt}" for attempt in itertools.count(2)))
    return next(name for name in names if not (storage / name).exists())


#: Callbacks whose actors are not needed: no datasets of Ray Data are used, and the driver removes the placement groups
#: of dead trials (``adaptive_ray.ray_cluster.placement``), even if their workers were just starting.
_LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(DataParallelTrainer):  # type: ignore[misc]
    """A trainer that retries lost workers only and starts fewer processes."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        workers = [each for each in self.run_config.callbacks if isinstance(each, Workers)]
        return [*workers, *(each for each in callbacks if not isinstance(each, _LEFT_OUT))]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        """Runs the controller in the trial's process, which waits for it anyway: a process less per trial."""
        policy = RetryLostWorkers(self.run_config.failure_config)
        controller = TrainController(**{**arguments, "failure_policy": policy})
        asyncio.run(controller.run())
        return controller.get_result()
