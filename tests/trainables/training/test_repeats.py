"""Tests that an image that occurs twice in a batch or an update with shared negatives is not its own negative."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schedulers import Candidate
from tests.trainables.runs import CPU, Reports, data, run, small
from tests.trainables.workers import Workers
from trainables.batches import SampleStream, balanced_order, shard_rows
from trainables.data import TrainingData
from trainables.settings import TrainSettings
from trainables.training.cuda_graphs import CudaGraphs, Step
from trainables.training.loop import train
from trainables.training.run import Run

IMAGES = 40
#: Two small clusters, whose images a balanced epoch repeats.
STRATA = np.repeat([0, 1, 2], [30, 6, 4])


def pictures(order: str) -> TrainingData:
    epoch_order = partial(balanced_order, STRATA, 3) if order == "balanced" else None
    return replace(data(IMAGES), epoch_order=epoch_order, strata=STRATA)


def images_passed(
    settings: dict[str, Any], order: str, resume_from: Path | None = None
) -> list[tuple[int, list[int] | None]]:
    """Returns for every call of the loss the number of this worker's rows and the argument ``images``."""
    taken: list[tuple[int, list[int] | None]] = []

    class Listening(Run):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            loss = self.step.gradients.loss

            def listens(z_a: Tensor, z_b: Tensor, images: Tensor | None = None, **rest: Any) -> Tensor:
                taken.append((len(z_a), None if images is None else images.tolist()))
                return loss(z_a, z_b, images=images, **rest)

            self.step.gradients.loss = listens

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainables.training.loop.Run", Listening)
        train(settings, pictures(order), Reports(), resume_from, device=CPU)
    return taken


SWAP = {"mode": "rotate", "candidates": [{"batch_size": 13}, {"batch_size": 36}, {"batch_size": 7}], "turn": 26}
SHARED = {"until": "information", "alpha": 2.2, "negatives": "shared"}
CASES = {
    "larger than half": small(batch_size=36, budget=180, evaluate_every=100),
    "as large as the data": small(batch_size=40, budget=80, evaluate_every=80),
    "swapped": small(batch_size=13, budget=200, evaluate_every=26, swap=SWAP),
    "shared negatives": small(batch_size=9, budget=200, evaluate_every=40, information=SHARED, micro_batch=2),
}


def whole(name: str, order: str, world: int, workers: Workers) -> list[list[tuple[int, list[int] | None]]]:
    return workers.run(world, images_passed, CASES[name], order) if world > 1 else [images_passed(CASES[name], order)]


@pytest.mark.parametrize(
    ("name", "order", "world"),
    [(name, "shuffled", 1) for name in CASES] + [("swapped", "balanced", 2), ("shared negatives", "balanced", 2)],
)
def test_the_loss_gets_the_indices_of_batches_with_repeated_images(
    workers: Workers, name: str, order: str, world: int
) -> None:
    of_workers = whole(name, order, world, workers)
    stream, position, twice = SampleStream(IMAGES, 3, pictures(order).epoch_order), 0, 0
    for calls in zip(*of_workers, strict=True):
        count = sum(rows for rows, _ in calls)
        images = stream.take(position, count)
        if len(set(images.tolist())) == count:
            assert all(known is None for _, known in calls)
        else:
            twice += 1
            assert sorted(image for _, known in calls for image in known or []) == sorted(images.tolist())
            if name != "shared negatives":
                parts = [images[shard_rows(count, worker, world)].tolist() for worker in range(world)]
                assert [known for _, known in calls] == parts
        position += count
    assert position >= CASES[name]["budget"]
    assert bool(twice) == (name != "as large as the data")


def test_repeated_images_are_the_same_after_a_resume(tmp_path: Path) -> None:
    settings = CASES["swapped"]
    complete = images_passed(settings, "shuffled")
    reports = run(settings, tmp_path, data=pictures("shuffled"))
    stopped = len(reports.metrics) // 2
    rest = images_passed(settings, "shuffled", reports.folder(stopped))
    assert rest == complete[len(complete) - len(rest) :]
    assert (
        sum(rows for rows, _ in rest) == reports.metrics[-1]["samples_seen"] - reports.metrics[stopped]["samples_seen"]
    )


class Eager:
    """Replaces a CUDA graph without GPU: runs the step with the captured tensors."""

    def __init__(self, step: Step, images: Tensor, packed: Tensor, rows: Tensor | None, *_: Any) -> None:
        self.images, self.packed, self.weight = images.clone(), packed.clone(), torch.ones(())
        self.rows = None if rows is None else rows.clone()
        self.graph, self._step = self, step
        step(self.images, self.packed, self.weight, self.rows)

    def replay(self) -> None:
        self.loss = self._step(self.images, self.packed, self.weight, self.rows)


@pytest.mark.parametrize("order", ["shuffled", "balanced"])
def test_cuda_graphs_get_the_indices_too(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.training.cuda_graphs._Graph", Eager)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    weights = []
    for captures in (False, True):
        run = Run(TrainSettings.model_validate(small(batch_size=36, budget=2000)), pictures(order), CPU)
        monkeypatch.setattr(
            run.step.loader.augment, "apply", lambda *of, run=run: run.step.loader.augment.views(of[0], of[1].packed())
        )
        steps = CudaGraphs(run.step.gradients._step, run.step.parallel)
        if captures:
            run.step._uses_graphs, run.step.gradients._graphs, run.step.gradients._warms_up = True, steps, True
        for size in (36, 13, 36, 6):
            run.state.swap_to(Candidate(size))
            run.train_until(run.state.samples + 70)
        kinds = {(size, repeats) for size in (6, 13, 36) for repeats in (False, True) if (size, repeats) in steps}
        assert {repeats for _, repeats in kinds} == (
            set() if not captures else {True} if order == "balanced" else {True, False}
        )
        weights.append(torch.cat([value.double().flatten() for value in run.state.model.state_dict().values()]))
    assert torch.equal(*weights)


def first_loss(batch: int) -> float:
    """Returns exp(loss) of a batch across the end of an epoch; at a high temperature, it is the number of terms."""
    settings = TrainSettings.model_validate(small(batch_size=batch, temperature=1e4))
    training = Run(settings, data(IMAGES), CPU)
    training.state.samples = IMAGES - batch // 2
    training.train_until(training.state.samples + 1)
    return float(np.exp(training.evaluate().train_loss))


@pytest.mark.parametrize("world", [1, 2])
def test_views_of_one_image_are_not_negatives(workers: Workers, world: int) -> None:
    batch = 30
    images = SampleStream(IMAGES, 3).take(IMAGES - batch // 2, batch)
    _, place, counts = np.unique(images, return_inverse=True, return_counts=True)
    assert counts.max() == 2
    terms = 2 * (batch - counts[place]) + 1  # of each anchor's denominator
    expected = float(np.exp(np.log(terms).mean()))
    for actual in workers.run(world, first_loss, batch) if world > 1 else [first_loss(batch)]:
        assert actual == pytest.approx(expected, abs=0.02)
    assert abs(expected - (2 * batch - 1)) > 0.2
