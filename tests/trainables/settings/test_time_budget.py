"""A budget in seconds becomes samples once the throughput is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers import Race, State
from tests.trainables.runs import small
from trainables.settings import TrainSettings
from trainables.settings.time_budget import TimeBudget


def settings(batch_size: int, accumulation: int = 1) -> TrainSettings:
    return TrainSettings.model_validate(small(batch_size=batch_size, accumulation=accumulation))


def test_samples_are_throughput_times_time() -> None:
    time = TimeBudget(budget=60, window=6, evaluations=6)
    slow, fast = time.settings(settings(64), 16_000), time.settings(settings(256), 25_600)
    assert (slow.budget, fast.budget) == (60 * 16_000, 60 * 25_600)
    assert (slow.evaluate_every, fast.evaluate_every) == (16_000, 25_600)
    assert time.window_samples(settings(64), 16_000) == 6 * 16_000
    assert slow.batch_size == 64


@given(
    seconds=st.floats(20, 1e5),
    share=st.floats(0.02, 0.9),
    throughput=st.floats(100, 1e6),
    batch_size=st.sampled_from([2, 48, 250]),
    accumulation=st.integers(1, 3),
    evaluations=st.integers(4, 50),
)
def test_a_race_finds_window_and_budget_spent_at_these_samples(
    seconds: float, share: float, throughput: float, batch_size: int, accumulation: int, evaluations: int
) -> None:
    """Otherwise a candidate would wait for a decision that the race does not take."""
    time, own = TimeBudget(seconds, share * seconds, evaluations), settings(batch_size, accumulation)
    images = own.candidate.images_per_update
    if time.window * throughput < 3 * images:
        with pytest.raises(ValueError, match=r"raise race\.window"):
            time.settings(own, throughput)
        return
    known, window = time.settings(own, throughput), time.window_samples(own, throughput)
    race = Race("ab", budget=time.budget, window=time.window, axis="seconds", prune_below=0)
    race.measure("a", throughput)
    race.report("a", window, 3.0)
    assert race.state("a") is State.WAITING
    assert race.spent("a", known.budget) >= time.budget
    assert race.spent("a", known.budget - images) < time.budget
    assert known.budget % images == window % known.evaluate_every == known.evaluate_every % images == 0


def test_too_short_a_window_says_how_long_it_must_be() -> None:
    with pytest.raises(ValueError, match=r"allows 2 updates of batch size 64x2 at 128 images/s.*0\.05 minutes"):
        TimeBudget(60, 2.1, 6).settings(settings(64, 2), 128)
    assert TimeBudget(2.1, 2.1, 6).settings(settings(64, 2), 128).budget == 384  # trained alone
