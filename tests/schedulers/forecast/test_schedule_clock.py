from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schedulers import JointForecaster
from schedulers.forecast.schedule_clock import schedule_clock

END = 1000.0
GRID = np.linspace(10, END, 100)


def cosine(s: np.ndarray, warmup: float = 0.05) -> np.ndarray:
    p = s / END
    return np.where(p < warmup, p / warmup, 0.5 + 0.5 * np.cos(np.pi * (p - warmup) / (1 - warmup)))


SCHEDULES = {"cosine": cosine, "linear": lambda s: 1 - s / END, "constant": np.ones_like}


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_recognised_from_its_first_part(name: str, averaged: bool) -> None:
    rates = 3e-4 * SCHEDULES[name](GRID)
    whole = schedule_clock(GRID, rates, END, averaged=averaged)
    part = schedule_clock(GRID[:15], rates[:15], END, averaged=averaged)
    assert whole
    assert part
    np.testing.assert_allclose(part(GRID), whole(GRID), rtol=0.03)


def test_constant_rate_counts_samples() -> None:
    clock = schedule_clock(GRID[:5], np.full(5, 0.1), END, averaged=True)
    assert clock
    np.testing.assert_allclose(clock([0, 5, 500, 2 * END]), [0, 5, 500, 2 * END])


def test_decay_slows_averaged_weights_and_helps_raw_ones() -> None:
    averaged, raw = (schedule_clock(GRID, cosine(GRID), END, averaged=value) for value in (True, False))
    assert averaged
    assert raw
    warmup = 25  # samples that the warm-up costs
    assert averaged(END) < END - warmup < raw(END)


@settings(max_examples=40, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=8),
    end=st.floats(allow_nan=True),
    averaged=st.booleans(),
)
@example(points=[(30.0, 0.0), (30.0, 1.0)], end=0.0, averaged=False)
def test_unusable_rates_leave_a_forecast(points: list[tuple[float, float]], end: float, averaged: bool) -> None:
    samples, rates = sorted(at for at, _ in points), [rate for _, rate in points]
    joint = JointForecaster(averaged=averaged)
    with np.errstate(all="ignore"):
        joint.fit({"a": ([10.0, 20.0, 30.0], [3.0, 2.5, 2.3])}, {"a": end}, {"a": (samples, rates)})
        assert not math.isnan(joint.forecast("a", 100.0).std)


@given(rates=st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=20), averaged=st.booleans())
@settings(max_examples=30, deadline=None)
def test_progress_never_decreases(rates: list[float], averaged: bool) -> None:
    clock = schedule_clock(GRID[: len(rates)], np.array(rates), END, averaged=averaged)
    assert clock
    assert (np.diff(clock(np.linspace(0, 2 * END, 200))) >= -1e-9).all()
