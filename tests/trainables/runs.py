"""Runs short trainings and compares their results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainables.images import smooth_images
from trainables.data import TrainingData
from trainables.simclr import SimCLR
from trainables.training.checkpoint import CHECKPOINT_FILE
from trainables.training.loop import train
from trainables.training.run import Run

CPU = torch.device("cpu")
UNCHANGED = {"crop_area": (1, 1), "crop_aspect": (1, 1), "flip": 0, "jitter": 0, "grayscale": 0}
#: Not functions of settings and data.
CLOCKS = {"seconds", "images_per_second", "data_wait"}


def small(**chosen: Any) -> dict[str, Any]:
    """Returns settings of a short run of 8 steps."""
    return {
        "encoder": {"width": 8, "depth": 1, "projection_hidden": 8, "projection_features": 6},
        "precision": "float32",
        "batch_size": 16,
        "budget": 128,
        "evaluate_every": 32,
        "seed": 3,
        **chosen,
    }


def data(images: int = 40, channels: int = 3) -> TrainingData:
    return TrainingData(smooth_images(images, 12, channels), smooth_images(24, 12, channels, seed=1))


class Reports:
    """Stores the metrics, and copies of the checkpoints if there is a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.metrics: list[dict[str, Any]] = []
        self.checkpoints: list[str | None] = []
        self._folder = folder

    def __call__(self, metrics: dict[str, Any], checkpoint: str | None = None) -> None:
        self.metrics.append(metrics)
        self.checkpoints.append(checkpoint)
        if self._folder is not None and checkpoint is not None:
            shutil.copytree(checkpoint, self.folder(len(self.metrics) - 1))

    def folder(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"checkpoint-{number % len(self.metrics)}"

    def state(self, number: int = -1) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(self.folder(number) / CHECKPOINT_FILE, weights_only=True)
        return state

    def column(self, name: str) -> list[Any]:
        return [metrics[name] for metrics in self.metrics]


def run(settings: dict[str, Any], folder: Path | None = None, resume_from: Path | None = None, **more: Any) -> Reports:
    reports = Reports(folder)
    train(settings, more.get("data", data()), reports, resume_from, device=CPU)
    return reports


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    """Asserts that nested containers are equal bit for bit."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}/{number}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def without_clocks(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in CLOCKS}


def double_simclr(*arguments: Any, **keywords: Any) -> SimCLR:
    """Returns ``SimCLR`` in float64; replaces it in ``trainables.training.state``."""
    model = SimCLR(*arguments, **keywords).double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model


def count_synchronisations(training: Run) -> list[int]:
    """Counts the gradient synchronisations from now on in the returned list's only entry."""
    synchronised = [0]

    def hook(_, bucket):  # type: ignore[no-untyped-def]
        synchronised[0] += bucket.is_last()
        mean = bucket.buffer().div_(dist.get_world_size())
        return dist.all_reduce(mean, async_op=True).get_future().then(lambda future: future.value()[0])

    if training.step.loader.world_size > 1:
        training.step.parallel.register_comm_hook(None, hook)  # type: ignore[operator]
    return synchronised
