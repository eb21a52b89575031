"""Tests gradient accumulation: an update's gradient is the mean over its batches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.trainables.runs import (
    CPU,
    assert_equal,
    count_synchronisations,
    data,
    double_simclr,
    run,
    small,
    without_clocks,
)
from tests.trainables.workers import Workers
from trainables.settings import TrainSettings
from trainables.simclr import Augment, dcl, nt_xent
from trainables.training.loader import Loader
from trainables.training.run import Run

LOSSES = {"nt_xent": nt_xent, "dcl": dcl}


def accumulating(batch_size: int, accumulation: int, **chosen: Any) -> dict[str, Any]:
    updates = {"budget": 8 * batch_size * accumulation, "evaluate_every": 2 * batch_size * accumulation}
    return small(batch_size=batch_size, accumulation=accumulation, **updates, **chosen)


def second_update(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns loss, gradients and number of synchronisations of a run's second update, in float64."""
    with patch("trainables.training.state.SimCLR", double_simclr):
        training = Run(TrainSettings.model_validate(settings), data(), CPU)
    if training.state.settings.micro_batch != "auto":
        training.state.model.eval()  # otherwise batch norms would use the statistics of micro-batches
    images = training.state.candidate.images_per_update
    training.train_until(images)
    synchronised = count_synchronisations(training)
    before = {name: value.clone() for name, value in training.state.model.state_dict().items()}
    training.train_until(2 * images)
    gradients = {name: p.grad.clone() for name, p in training.state.model.named_parameters() if p.grad is not None}
    loss = training.evaluate().train_loss
    return {"before": before, "loss": loss, "gradients": gradients, "synchronised": synchronised[0]}


def by_hand(settings: dict[str, Any], weights: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Computes the mean loss and gradient of the second update's batches, one after the other."""
    chosen = TrainSettings.model_validate(settings)
    size, batches = chosen.batch_size, chosen.accumulation
    loader = Loader(data(), Augment(12, chosen.augment), chosen.seed, CPU)
    losses, gradients = [], []
    for number in range(batches, 2 * batches):
        model = double_simclr(chosen.encoder, 3)
        model.load_state_dict(weights)
        if chosen.micro_batch != "auto":
            model.eval()
        views = loader.batch(number * size, size).views()
        images = torch.from_numpy(loader.indices(number * size, size))
        loss = LOSSES[chosen.loss](*model(views).chunk(2), chosen.temperature, images=images)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    mean = {name: torch.stack([gradient[name] for gradient in gradients]).mean(0) for name in gradients[0]}
    return sum(losses) / batches, mean


@pytest.mark.parametrize(
    ("world", "settings"),
    [
        (1, accumulating(12, 1)),
        (1, accumulating(12, 3)),
        (1, accumulating(7, 4, loss="dcl")),
        (1, accumulating(12, 3, micro_batch=3)),
        (2, accumulating(12, 3)),
        (2, accumulating(13, 2, micro_batch=3)),
        (4, accumulating(12, 3)),
        (4, accumulating(13, 2, micro_batch=2)),
    ],
    ids=["1", "1", "1-dcl", "1-cut", "2", "2-cut", "4", "4-cut"],
)
def test_the_gradient_is_the_mean_of_the_batches_gradients(
    workers: Workers, world: int, settings: dict[str, Any]
) -> None:
    parts = workers.run(world, second_update, settings) if world > 1 else [second_update(settings)]
    for part in parts:
        loss, gradients = by_hand(settings, part["before"])
        assert part["loss"] == pytest.approx(loss, abs=1e-12)
        torch.testing.assert_close(part["gradients"], gradients, rtol=0, atol=1e-10)
        assert part["synchronised"] == (world > 1)  # once, for any number of batches


def test_one_two_and_four_workers_make_the_same_update(workers: Workers) -> None:
    settings = accumulating(13, 3)
    alone = second_update(settings)
    for world in (2, 4):
        for part in workers.run(world, second_update, settings):
            for name in ("before", "gradients"):
                torch.testing.assert_close(part[name], alone[name], rtol=0, atol=1e-10)
            assert part["loss"] == pytest.approx(alone["loss"], abs=1e-12)


def test_it_adds_no_negatives() -> None:
    """The initial loss of four batches of 4 is near ln(2 * 4 - 1), not near ln(2 * 16 - 1)."""
    reports = run(accumulating(4, 4, temperature=5.0))
    assert reports.column("train_loss")[0] == pytest.approx(math.log(7), abs=0.2)
    for loss, above in zip(reports.column("train_loss"), reports.column("train_loss_above_chance"), strict=True):
        assert above == pytest.approx(loss - math.log(7))


def test_schedules_and_reports_use_the_images_of_an_update() -> None:
    settings = TrainSettings.model_validate(small(batch_size=4, accumulation=4))
    reports = run(settings.model_dump())
    whole = run(small(batch_size=16))
    for name in ("samples_seen", "progress", "learning_rate"):
        assert reports.column(name) == whole.column(name)
    assert reports.column("batch_size") == [4] * 4
    assert reports.column("accumulation") == [4] * 4
    assert whole.column("accumulation") == [1] * 4


def test_the_ema_uses_the_images_of_an_update(tmp_path: Path) -> None:
    settings = small(batch_size=4, accumulation=4, evaluate_every=16, ema_horizon=0.5)
    reports = run(settings, tmp_path)
    name, average = "head.0.weight", torch.zeros(())
    for number, seen in enumerate(reports.column("samples_seen")):
        keep = min(math.exp(-16 / (0.5 * 128)), 1 - 16 / seen)
        average = keep * average + (1 - keep) * reports.state(number)["model"][name]
        torch.testing.assert_close(reports.state(number)["ema"][name], average, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stopped", [0, 1, 2])
@pytest.mark.parametrize("chosen", [{}, {"optimizer": {"name": "lars", "learning_rate": 5.0}}, {"micro_batch": 3}])
def test_resumes_bit_for_bit(tmp_path: Path, stopped: int, chosen: dict[str, Any]) -> None:
    settings = accumulating(8, 3, **chosen)
    whole = run(settings, tmp_path / "whole")
    rest = run(settings, tmp_path / "rest", resume_from=whole.folder(stopped))
    for here, there in zip(rest.metrics, whole.metrics[stopped + 1 :], strict=True):
        assert_equal(without_clocks(here), without_clocks(there))
    assert_equal(without_clocks(rest.state()), without_clocks(whole.state()))


def test_lars_rescales_its_momentum_to_the_images_of_an_update(tmp_path: Path) -> None:
    optimizer = {"name": "lars", "learning_rate": 5.0, "lr_scaling": "linear"}
    first = run(small(optimizer=optimizer), tmp_path)
    training = Run(
        TrainSettings.model_validate(small(optimizer=optimizer, batch_size=8, accumulation=6)),
        data(),
        CPU,
        resumed=True,
    )
    training.load(first.folder(1))
    before = first.state(1)["optimizer"]["state"]
    after = training.state.optimizer.state_dict()["state"]
    assert len(before) > 0
    for key, state in before.items():
        torch.testing.assert_close(after[key]["momentum_buffer"], 3 * state["momentum_buffer"])
