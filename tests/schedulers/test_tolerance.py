"""Candidates whose forecasts are almost equal are equal, and the fastest of them wins."""

import math

import numpy as np
import pytest

from schedulers import FORECASTERS, Decision, Race, State
from schedulers.events import from_json, to_json
from schedulers.race_series import RaceSeries
from tests.schedulers.curves import shared_curve

BUDGET, WINDOW = 100_000, 20_000
#: Images per second of ResNet-18 on CIFAR-10 on an H200.
SPEEDS = {"64": 16_450.0, "256": 25_890.0, "1024": 31_310.0}
#: 256 needs a few percent more samples than 64 for the same loss, 1024 twice as many.
RATES = {"64": 1.0, "256": 0.97, "1024": 0.5}


def replay(race: Race | RaceSeries, rates: dict[str, float]) -> list[Decision]:
    decisions = []
    for samples in np.linspace(WINDOW / 10, WINDOW, 10):
        for key, rate in rates.items():
            decisions += race.report(key, float(samples), float(shared_curve(np.array(rate * samples))))
    return decisions


def measured(race: Race, speeds: dict[str, float] = SPEEDS) -> Race:
    for key, speed in speeds.items():
        race.measure(key, speed)
    return race


@pytest.mark.parametrize("name", FORECASTERS)
@pytest.mark.parametrize("prune_below", [0, 0.1])
def test_fastest_of_equals_wins(name: str, prune_below: float) -> None:
    forecaster = FORECASTERS[name]
    common = {"budget": BUDGET, "window": WINDOW, "prune_below": prune_below, "rule": "forecast"}
    race = measured(Race(RATES, **common, tolerance=0.02, forecaster=forecaster()))  # type: ignore[arg-type]
    replay(race, RATES)
    assert race.winner == "256"


@pytest.mark.parametrize("prune_below", [0, 0.1])
def test_fastest_of_equal_losses_wins(prune_below: float) -> None:
    race = measured(Race(RATES, budget=BUDGET, window=WINDOW, prune_below=prune_below, tolerance=0.02))
    decisions = {decision.key: decision for decision in replay(race, RATES)}
    won, lowest = decisions["256"], decisions["64"]
    assert won.state is State.WON
    assert won.loss > lowest.loss
    if prune_below:  # slower and no better: it does not spend its window
        assert lowest.samples == 0.4 * WINDOW
        assert "256 is within" in lowest.reason
        assert "1.57 times as fast" in lowest.reason
    else:
        assert f"of the lowest (64: {lowest.loss:.3f}), and 1.57 times as fast" in won.reason


def test_reason_states_loss_and_speed() -> None:
    race = measured(Race(RATES, budget=BUDGET, window=WINDOW, rule="forecast", tolerance=0.02, prune_below=0))
    decisions = {decision.key: decision for decision in replay(race, RATES)}
    won, lowest = decisions["256"], decisions["64"]
    assert won.state is State.WON
    assert won.forecast.mean > lowest.forecast.mean
    assert won.throughput_alone == SPEEDS["256"]
    assert f"of the lowest (64: {lowest.forecast.mean:.3f}), and 1.57 times as fast" in won.reason
    assert f"forecast {won.forecast.mean:.3f} is within" in won.reason


def test_slower_and_no_better_is_pruned_early() -> None:
    equal = {"64": 1.0, "256": 1.0}
    race = measured(Race(equal, budget=BUDGET, window=WINDOW, rule="forecast", tolerance=0.05))
    pruned = next(decision for decision in replay(race, equal) if decision.key == "64")
    assert pruned.state is State.PRUNED
    assert pruned.samples < WINDOW
    assert "256 is within" in pruned.reason
    assert "1.57 times as fast" in pruned.reason
    without = Race(equal, budget=BUDGET, window=WINDOW, rule="forecast", tolerance=0.05)
    assert all(decision.samples == WINDOW for decision in replay(without, equal))


@pytest.mark.parametrize("unequal", [{"tolerance": 0}, {"axis": "seconds"}])
def test_lowest_forecast_wins_otherwise(unequal: dict[str, object]) -> None:
    """With a budget in seconds, the throughput decides how many samples a candidate trains on instead."""
    race = Race(RATES, budget=BUDGET, window=WINDOW, prune_below=0, **unequal)  # type: ignore[arg-type]
    speeds = dict.fromkeys(RATES, 1.0) if "axis" in unequal else SPEEDS
    replay(measured(race, speeds), RATES)
    assert race.winner == "64"


def test_all_throughputs_must_be_measured() -> None:
    race = measured(Race(RATES, budget=BUDGET, window=WINDOW, tolerance=0.02, prune_below=0), {"64": 1.0, "256": 2.0})
    replay(race, RATES)
    assert race.winner == "64"
    assert race.standings()[0].throughput_alone == 1.0
    assert math.isnan(race.standings()[2].throughput_alone)


def test_budget_in_seconds_follows_the_measured_throughput() -> None:
    """Not that of the race, in which candidates share a device: samples decide everything once it is known."""
    race = measured(Race(SPEEDS, budget=60.0, window=6.0, axis="seconds"))
    assert race.horizon("256") == 60 * SPEEDS["256"]
    race.report("256", 2 * SPEEDS["256"], 5.0, 37.0)
    assert race.horizon("256") == 60 * SPEEDS["256"]
    assert race.spent("256") == 2.0


@pytest.mark.parametrize("throughput", [0.0, -1.0, math.nan, math.inf])
def test_rejects_impossible_throughputs(throughput: float) -> None:
    with pytest.raises(ValueError, match="is not a positive number"):
        Race("ab", budget=BUDGET, window=WINDOW).measure("a", throughput)


def test_measurement_is_an_event_and_counts_once() -> None:
    series = RaceSeries(budget=BUDGET, window=WINDOW, tolerance=0.02, prune_below=0, rerace={"at": [0.5]})
    series.expect(3)
    for key in RATES:
        series.enter(key)
    for key, speed in SPEEDS.items():
        series.measure(key, speed)
        series.measure(key, 2 * speed)
    replay(series, RATES)
    series.report("256", BUDGET / 2, 2.0)
    assert len(series.races) == 2
    assert [standing.throughput_alone for standing in series.race.standings()] == list(SPEEDS.values())
    again = RaceSeries(budget=BUDGET, window=WINDOW, tolerance=0.02, prune_below=0, rerace={"at": [0.5]})
    for event in series.events:
        again.take(from_json(to_json(event)))
    assert repr(again.decisions) == repr(series.decisions)
    assert again.throughputs == SPEEDS
