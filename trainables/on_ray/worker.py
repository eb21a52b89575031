"""The training function of a Ray Train worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from trainables.batches import EpochOrder
from trainables.on_ray.process_group import PeerLostError
from trainables.on_ray.turns import Turns
from trainables.training.loop import train
from trainables.training.memory_limits import share_gpu

#: Attempts to fetch an array; nodes may die one after the other.
_ATTEMPTS = 5
#: Part of the message of Gloo's connection errors, which have no exception type.
_GLOO = "/gloo/transport/"


def train_worker(config: dict[str, Any]) -> None:
    """Trains on this worker's shard of every batch.

    Args:
        config: ``settings`` (``TrainSettings``), ``data`` (reference to ``TrainingData`` in the object store),
            ``threads`` (CPU threads), ``gpus`` (fraction of a GPU), ``memory`` (bytes that it may use on the CPU, or
            None), ``resume_from`` (path of a checkpoint, or None), ``clusters`` (None, or the actor that serves the
            dataset clusters as ``service`` and the fields of ``TrainingData`` to fetch from it as ``wanted``),
            ``candidate`` (its key), ``race`` (``RaceTerms``, or None).

    Raises:
        DeviceBusyError: Another candidate kept the device, so that the throughput could not be measured.
        PeerLostError: The connection to another worker was lost.
    """
    try:
        _train(config)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or _GLOO in str(error):
            raise PeerLostError(str(error).strip().splitlines()[0]) from error
        raise


def _train(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["threads"])  # several trials share the cores of a machine
    interrupted = ray.train.get_checkpoint()  # of this run, if its workers were restarted
    start = interrupted or (ray.train.Checkpoint(config["resume_from"]) if config["resume_from"] else None)

    storage = _storage()

    data, device = ray.get(config["data"]), ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        share_gpu(device, config["gpus"])  # trials on the same GPU share its memory
    turns = None
    if config["race"] is not None:
        turns = Turns(config["race"], config["candidate"], device, config["threads"])

    def report(metrics: dict[str, Any], checkpoint: str | None = None) -> None:
        if turns is not None and turns.measurement is not None:
            measured = turns.measurement
            metrics |= {"images_per_second_alone": measured.throughput, "in_place": measured.in_place}
        if checkpoint is None:
            ray.train.report(metrics)
        else:
            written = ray.train.Checkpoint.from_directory(checkpoint)
            ray.train.report(metrics, written, checkpoint_upload_fn=partial(_named, storage))
        if turns is not None:
            turns.after_report(metrics["samples_seen"])

    if config["clusters"] is not None:
        data = replace(data, **told_by(**config["clusters"]))
    settings = config["settings"]
    train_from = partial(
        train,
        settings if turns is None else turns.settings(settings),
        data,
        report,
        device=device,
        memory=config["memory"],
        checkpoints=storage,
        on_ready=turns.begin if turns is not None else None,
    )
    if start is None:
        train_from()
        return
    with start.as_directory() as directory:
        train_from(directory)


def _storage() -> Path:
    """Returns the directory of this Ray Train run. Raises ``RuntimeError`` if it does not exist on this node."""
    storage = Path(ray.train.get_context().get_storage().experiment_fs_path)
    if not storage.is_dir():
        raise RuntimeError(
            f"{storage} does not exist on node {ray.util.get_node_ip_address()}; "
            "runs_dir must be a path that all nodes reach, such as a network file system"
        )
    return storage


def _named(storage: Path, written: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Renames a checkpoint that was written to ``storage``, so that it appears there atomically."""
    return ray.train.Checkpoint.from_directory(Path(written.path).rename(storage / name))


def told_by(service: Any, wanted: Iterable[str]) -> dict[str, Any]:
    """Fetches fields of ``TrainingData`` from the actor that serves the dataset clusters."""
    return {name: orders_of(service) if name == "epoch_order" else _fetched(service.reference, name) for name in wanted}


def orders_of(service: Any) -> EpochOrder:
    """Returns a function that fetches the order of an epoch; workers on a node share the array."""
    return partial(_fetched, service.epoch_order)


def _fetched(method: Any, argument: Any) -> Any:
    """Fetches an array from the object store; the actor's method returns a list with its reference."""
    for attempt in range(_ATTEMPTS):
        try:
            array = ray.get(ray.get(method.remote(argument))[0])
        except ray.exceptions.ObjectLostError:  # with the actor's node; the actor is restarted
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            break
    return array
