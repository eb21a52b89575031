from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainables.settings import EncoderSettings
from trainables.simclr import SimCLR
from trainables.simclr.ema import WeightEMA


def network(value: float) -> SimCLR:
    model = SimCLR(EncoderSettings(width=8, depth=1, projection_hidden=3, projection_features=2), 1).double()
    return filled(model, value)


@torch.no_grad()
def filled(model: SimCLR, value: float) -> SimCLR:
    for number, p in enumerate(model.parameters()):
        p.fill_(value * (number + 1))  # a different multiple for each parameter, to detect swapped ones
    return model


def averaged(average: WeightEMA) -> float:
    """Returns the common factor of the EMA model's weights."""
    values: list[Tensor] = [p / (number + 1) for number, p in enumerate(average.model.parameters())]
    value = float(values[0].flatten()[0])
    for p in values:
        torch.testing.assert_close(p, torch.full_like(p, value), rtol=0, atol=1e-12)
    return value


def run(schedule: list[tuple[int, float]], horizon: float, start: float = 100.0) -> float:
    """Returns the EMA after steps of (batch size, value of the weights after the step)."""
    model = network(start)
    average, samples = WeightEMA(model, horizon), 0
    for batch, value in schedule:
        samples += batch
        filled(model, value)
        average.update(batch, samples)
    return averaged(average)


def test_constant_weights_are_unchanged() -> None:
    assert run([(7, 0.3)] * 20, horizon=30) == pytest.approx(0.3, abs=1e-14)


def test_follows_its_recursion() -> None:
    schedule = [(4, 1.0), (4, 5.0), (8, -3.0), (2, 2.0), (16, 0.5), (32, 4.0), (4, -1.0), (4, 3.0)]
    value, samples = 100.0, 0
    for batch, weight in schedule:
        samples += batch
        keep = min(math.exp(-batch / 20), (samples - batch) / samples)
        value = keep * value + (1 - keep) * weight
    assert run(schedule, horizon=20) == pytest.approx(value, abs=1e-12)


def test_is_the_mean_over_samples_at_first() -> None:
    schedule = [(4, 1.0), (4, 5.0), (8, -3.0), (2, 2.0)]
    mean = sum(batch * value for batch, value in schedule) / sum(batch for batch, _ in schedule)
    assert run(schedule, horizon=1e9) == pytest.approx(mean, abs=1e-6)


def test_forgets_the_initial_weights() -> None:
    assert run([(4, 1.0)], horizon=20, start=1e6) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("batch", [10, 20, 50, 100, 200])
def test_the_horizon_is_in_samples_and_not_in_steps(batch: int) -> None:
    """After 1000 samples at 1 and 200 at 0, the EMA is the same for any batch size."""
    steps = [(batch, 1.0)] * (1000 // batch) + [(batch, 0.0)] * (200 // batch)
    assert run(steps, horizon=150) == pytest.approx(math.exp(-200 / 150), abs=1e-12)


def test_averages_neither_statistics_nor_gradients() -> None:
    model = network(1.0)
    average = WeightEMA(model, 20)
    model.train()(torch.rand(4, 1, 8, 8, dtype=torch.float64))
    filled(model, 2.0)
    average.update(4, 8)
    fresh = dict(network(1.0).named_buffers())
    assert all(torch.equal(value, fresh[name]) for name, value in average.model.named_buffers())
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not average.model.training
    assert average.encoder is average.model.encoder


def test_does_not_change_the_model() -> None:
    model = network(1.0)
    average = WeightEMA(model, 20)
    average.update(4, 4)
    filled(model, 3.0)
    average.update(4, 8)
    assert all(torch.equal(p, torch.full_like(p, 3.0 * (n + 1))) for n, p in enumerate(model.parameters()))
    assert averaged(average) == pytest.approx(2.0)
