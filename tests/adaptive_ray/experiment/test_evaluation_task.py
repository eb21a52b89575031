"""The final evaluation in a Ray task that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.util import placement_group

from adaptive_ray.experiment import evaluation_task
from adaptive_ray.experiment.evaluate import HeldOut, evaluate
from adaptive_ray.experiment.evaluation_task import EvaluationTask
from adaptive_ray.ray_cluster.cluster import started
from adaptive_ray.ray_cluster.layout import Workers
from adaptive_ray.ray_cluster.nodes import Node
from adaptive_ray.report.accuracies import ACCURACIES
from tests.trainables.images import smooth_images
from tests.trainables.runs import small
from trainables.data import TrainingData
from trainables.settings import TrainSettings
from trainables.simclr.encoder import CIFARResNet
from trainables.training.loop import initial_encoder


class Killed(CIFARResNet):
    """An encoder that kills its process, once per file of ``folder``."""

    folder: Path

    def embed(self, *arguments: Any, **keywords: Any) -> Any:
        for file in self.folder.iterdir():
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(*arguments, **keywords)


@pytest.fixture(scope="module")
def cluster(ray_files: Path) -> Iterator[None]:
    with started(1):
        yield


@pytest.mark.ray
def test_killed_once_it_is_repeated_and_then_given_up(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings.model_validate(small())
    data = TrainingData(smooth_images(60, 12), smooth_images(24, 12, seed=1))
    held_out = HeldOut(smooth_images(20, 12, seed=2), np.arange(60) % 3, np.arange(20) % 3)
    encoder = Killed(settings.encoder, 3).eval()
    encoder.folder = tmp_path
    task = EvaluationTask(cpus=1, gpus=0, seconds=300)
    reference = ray.put(data)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = evaluate(
            encoder,
            lambda: initial_encoder(settings, data),
            data.images,
            held_out,
            limit=50,
            device=torch.device("cpu"),
        )
    finally:
        torch.set_num_threads(threads)
    ray.get(placement_group([{"CPU": 1}]).ready())  # left by a trial
    (tmp_path / "1").touch()
    found = task.run(encoder, settings, reference, held_out, limit=50)
    assert not any(tmp_path.iterdir())
    assert found.unavailable == {}
    assert found.accuracies == here.accuracies
    assert np.array_equal(found.neighbours, here.neighbours)

    (tmp_path / "1").touch()
    (tmp_path / "2").touch()
    lost = task.run(encoder, settings, reference, held_out, limit=50)
    assert set(lost.accuracies.values()) == {None}
    assert set(lost.unavailable) == {*ACCURACIES, "neighbours.png"}
    assert lost.unavailable["probe_accuracy"].startswith("WorkerCrashedError")

    late = replace(task, seconds=0.01).run(encoder, settings, reference, held_out, limit=50)
    assert "not finished after 0 seconds" in late.unavailable["knn_accuracy"]
    monkeypatch.setattr(evaluation_task, "_PLACEMENT_SECONDS", 1)
    unplaced = replace(task, cpus=2).run(encoder, settings, reference, held_out, limit=50)
    assert "cannot place 1 x (2 CPU, 0 GPU) after 1 seconds" in unplaced.unavailable["knn_accuracy"]


@pytest.mark.parametrize(
    ("workers", "nodes", "cpus"),
    [
        (Workers(8, 1, 0), [Node("a", 2, 0, 0), Node("b", 4, 0, 0)], 4),  # what one node has
        (Workers(3, 1, 0), [Node("a", 2, 0, 0), Node("b", 4, 0, 0)], 3),  # what the winner had
        (Workers(1, 0.5, 0), [Node("a", 2, 0, 0)], 0.5),
        (Workers(1, 1.5, 0), [Node("a", 2, 0, 0)], 1),  # Ray accepts no 1.5
        (Workers(4, 2, 1), [Node("a", 8, 4, 0)], 2),  # one GPU
    ],
)
def test_requests_what_the_winner_had_on_a_node(workers: Workers, nodes: list[Node], cpus: float) -> None:
    task = EvaluationTask.like(workers, nodes, training_seconds=7.0)
    assert (task.cpus, task.gpus, task.seconds) == (cpus, workers.gpus, 1800)
    assert EvaluationTask.like(workers, nodes, training_seconds=7200).seconds == 7200
