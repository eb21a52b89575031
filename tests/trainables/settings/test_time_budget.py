"""A budget in seconds becomes samples once the throughput is known."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers import Race, State
from schedulers.race_series import RaceSeries
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


@pytest.mark.parametrize("speeds", [{"a": 700, "b": 1e5 / 3, "c": 1234.5}, {"a": 1e5 / 7, "b": 330, "c": 9e4}])
@pytest.mark.parametrize(("seconds", "images"), [(60, 64), (1e5 / 3, 250)])
def test_a_fork_has_its_own_throughput_times_the_time_that_is_left(
    speeds: dict[str, float], seconds: float, images: int
) -> None:
    """In a second race all fork from a; in a third one, from b."""
    common: dict[str, Any] = {"axis": "seconds", "prune_below": 0, "forecaster": "last_value"}
    races = RaceSeries(budget=seconds, window=seconds / 10, rerace={"at": [0.3, 0.6]}, **common)

    def trains(key: str, spent: float, loss: float) -> None:
        samples, before = races.origin(key)
        races.report(key, samples + (spent * seconds - before) * speeds[key], loss)

    for key, speed in speeds.items():
        races.enter(key)
        races.measure(key, speed)
    for best, begin in (("a", 0.0), ("b", 0.31)):
        for key in "abc":
            for part in range(1, 13):
                trains(key, begin + part / 100, 5 - part / 100 - begin - (key == best))
        assert races.race.winner == best
        trains(best, begin + 0.31, 3.0)
        assert races.source == best
    assert len(races.races) == 3
    assert races.origin("b") == (races.races[1].start, pytest.approx(0.31 * seconds))
    origin = races.origin("c")
    assert origin == (races.race.start, pytest.approx(0.62 * seconds))
    total = TimeBudget(seconds, seconds / 10, 6).settings(settings(images), speeds["c"], origin).budget
    assert (total - int(origin[0])) % images == 0
    assert races.race.spent("c", total) >= seconds * (1 - 1e-6)
    assert races.race.spent("c", total - images) < seconds


def test_too_short_a_window_says_how_long_it_must_be() -> None:
    with pytest.raises(ValueError, match=r"allows 2 updates of batch size 64x2 at 128 images/s.*0\.05 minutes"):
        TimeBudget(60, 2.1, 6).settings(settings(64, 2), 128)
    assert TimeBudget(2.1, 2.1, 6).settings(settings(64, 2), 128).budget == 384  # trained alone
