import math

import numpy as np
import pytest

from schedulers import FORECASTERS, Decision, Race, State
from tests.schedulers.curves import shared_curve

BUDGET, WINDOW = 100_000, 20_000


def replay(race: Race, rates: dict[str, float], *, points: int = 10, pace: dict[str, float] | None = None) -> Race:
    """Reports losses of candidates with these statistical efficiencies (and throughputs), in turns."""
    for samples in np.linspace(WINDOW / points, WINDOW, points):
        for key, rate in rates.items():
            seconds = samples / (pace or {}).get(key, 100.0)
            race.report(key, float(samples), float(shared_curve(np.array(rate * samples))), seconds)
    return race


def test_halving_compares_losses_after_equal_samples_and_prunes_the_worse_half() -> None:
    rates = {"a": 1.0, "b": 1.5, "c": 1.2, "d": 0.8, "e": 0.5}
    race = Race(rates, budget=BUDGET, window=WINDOW)
    decisions: list[Decision] = []
    for samples in np.linspace(1_000, WINDOW, 20):
        for key, rate in rates.items():
            at = samples + 300 if key == "a" else samples  # compared where all have reported, not by the last losses
            decisions += race.report(key, float(at), float(shared_curve(np.array(rate * at))))
    pruned = {d.key: d for d in decisions if d.state is State.PRUNED}
    assert {key: d.samples for key, d in pruned.items() if key != "c"} == {"a": 8_300, "d": 8_000, "e": 8_000}
    assert pruned["c"].samples == WINDOW
    assert pruned["e"].reason.startswith("loss ")
    assert "after 8,000 samples: rank 5 of 5 (best: b, " in pruned["e"].reason
    won = decisions[-1]
    assert (won.key, won.state) == ("b", State.WON)
    assert won.reason == f"lowest loss {won.loss:.3f} after 20,000 samples"
    assert 0 < won.probability_best <= 1  # forecasts are numbers for the report
    assert f"after 20,000 samples; the winner: {won.loss:.3f}" in pruned["c"].reason


def test_halving_waits_for_the_slowest_and_prunes_nobody_if_prune_below_is_0() -> None:
    race = Race("abc", budget=BUDGET, window=WINDOW)
    for samples in range(1_000, 20_000, 1_000):
        assert race.report("a", samples, 6.0 - samples / 10_000) == []
        assert race.report("b", samples, 5.0 - samples / 10_000) == []
    (decision,) = race.report("c", 9_500, 1.0)  # first reports of a and b: 1,000; of c: 9,500
    assert (decision.key, decision.state, decision.samples) == ("a", State.PRUNED, 19_000)
    assert "loss 5.050 after 9,500 samples" in decision.reason  # interpolated
    never = replay(Race("abcd", budget=BUDGET, window=WINDOW, prune_below=0), {"a": 1, "b": 2, "c": 3, "d": 4})
    assert [standing.samples for standing in never.standings()] == [WINDOW] * 4
    assert never.winner == "d"


def test_halving_at_equal_time_compares_goodput() -> None:
    """b needs fewer samples, a is faster; the seconds of the race do not count once throughputs were measured."""
    race = Race("ab", budget=1_000.0, window=100.0, axis="seconds")
    race.measure("a", 200.0)
    race.measure("b", 100.0)
    for seconds in range(10, 101, 10):
        for key, pace, rate in (("a", 200.0, 1.0), ("b", 100.0, 1.5)):
            race.report(key, pace * seconds, float(shared_curve(np.array(rate * pace * seconds))), 37.0 + seconds)
    assert race.winner == "a"
    assert race.reason("a").endswith("after 100 seconds")


@pytest.mark.parametrize("name", FORECASTERS)
def test_best_curve_wins(name: str) -> None:
    for best in ("a", "b", "c"):
        rates = {key: 1.5 if key == best else 0.9 for key in "abc"}
        forecaster = FORECASTERS[name]()
        new = Race("abc", budget=BUDGET, window=WINDOW, rule="forecast", forecaster=forecaster, prune_below=0)
        race = replay(new, rates)
        assert race.over
        # per_curve is kept for comparison and may be wrong; the others must not be.
        assert race.winner == best or name == "per_curve"


def test_reference_loss_and_raw_loss_pick_different_winners() -> None:
    """The raw NT-Xent loss grows with ln(2B - 1), so the smallest batch size always looks best."""
    rates = {"64": 0.7, "128": 1.3, "512": 0.9}
    raw, fair = (Race(rates, budget=BUDGET, window=WINDOW, prune_below=0) for _ in range(2))
    last_raw: dict[str, float] = {}
    for samples in np.linspace(2_000, WINDOW, 10):
        for key, rate in rates.items():
            reference = float(shared_curve(np.array(rate * samples)))
            last_raw[key] = reference - 6.0 + math.log(2 * int(key) - 1)
            raw.report(key, float(samples), last_raw[key])
            fair.report(key, float(samples), reference)
    assert min(last_raw, key=lambda key: last_raw[key]) == "64"
    assert raw.winner == "64"
    assert fair.winner == "128"


def test_unlikely_candidate_is_pruned_at_once_and_the_others_continue() -> None:
    race = Race("abc", budget=BUDGET, window=WINDOW, rule="forecast", min_reports=4)
    decisions = []
    for samples in np.linspace(2_000, WINDOW, 10):
        for key, rate in {"a": 1.1, "b": 1.0, "c": 0.4}.items():
            decisions += race.report(key, float(samples), float(shared_curve(np.array(rate * samples))))
    pruned = next(d for d in decisions if d.key == "c")
    assert pruned.state is State.PRUNED
    assert pruned.samples <= 4 * 2_000  # after the fourth report, long before the end of the window
    assert pruned.probability_best < 0.05
    assert "probability" in race.failures()["c"]
    assert race.winner == "a"


def test_no_candidate_is_pruned_by_a_forecast_before_min_reports() -> None:
    race = Race("ab", budget=BUDGET, window=WINDOW, rule="forecast", min_reports=4)
    for samples in range(1_000, 8_000, 1_000):
        assert race.report("a", samples, 5.0 - samples / 10_000) == []
    assert race.report("b", 1_000, 9.0) == []
    assert race.alive == ["a", "b"]


def test_candidate_waits_after_its_window() -> None:
    race = Race("ab", budget=BUDGET, window=WINDOW, prune_below=0)
    for samples in np.linspace(2_000, WINDOW, 10):
        decisions = race.report("a", float(samples), float(shared_curve(np.array(samples))))
    assert [d.state for d in decisions] == [State.WAITING]
    assert not race.over
    for samples in np.linspace(2_000, WINDOW, 10):
        decisions = race.report("b", float(samples), float(shared_curve(np.array(2 * samples))))
    assert {d.key: d.state for d in decisions} == {"b": State.WON, "a": State.PRUNED}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_prunes_the_candidate(loss: float) -> None:
    race = Race("abc", budget=BUDGET, window=WINDOW)
    (decision,) = race.report("b", 1_000, loss)
    assert decision.state is State.PRUNED
    assert str(loss) in decision.reason
    assert "1,000 samples" in decision.reason
    assert race.report("b", 2_000, 1.0) == []
    assert replay(race, {"a": 1.0, "c": 1.4}).winner == "c"


def test_failures_keep_every_reason() -> None:
    race = Race("ab", budget=BUDGET, window=WINDOW)
    assert [d.state for d in race.fail("a", "ran out of memory")] == [State.PRUNED]
    assert race.winner is None  # b has not reported yet
    assert [d.state for d in race.report("b", 1_000, 5.0)] == [State.WON]
    race.report("b", 2_000, math.nan)
    assert race.over
    assert race.winner is None
    assert race.failed_winner == "b"
    assert set(race.failures()) == {"a", "b"}
    alone = Race("a", budget=BUDGET, window=WINDOW)
    alone.fail("a", "ran out of memory")
    assert alone.over
    assert alone.winner is alone.failed_winner is None
    assert alone.failures() == {"a": "ran out of memory"}


@pytest.mark.parametrize("last", ["fail", "nan", "complete"])
def test_winner_needs_a_finite_loss(last: str) -> None:
    race = Race("ab", budget=BUDGET, window=WINDOW)
    race.fail("a", "its process died")
    assert not race.over
    if last == "fail":
        race.fail("b", "its process died")
    elif last == "nan":
        race.report("b", 1_000, math.nan)
    else:
        race.complete("b")
        assert race.reason("b") == "ended without reporting a loss"
    assert race.over
    assert race.winner is None


def test_repeated_events_are_ignored() -> None:
    race = Race("ab", budget=BUDGET, window=WINDOW)
    race.report("a", 1_000, 5.0)
    race.report("b", 1_000, 5.0)
    race.enter("c")
    race.fail("c", "crashed")
    race.enter("c")
    assert race.state("c") is State.PRUNED
    assert [(d.key, d.state, d.reason) for d in race.retry("ac")] == [("c", State.RACING, "retried")]
    assert race.retry("abc") == []
    race.report("a", 1_000, 4.0)
    race.report("a", 500, 3.0)
    assert next(s for s in race.standings() if s.key == "a").loss == 5.0


def test_failed_winner_wins_again_when_retried() -> None:
    race = Race("ab", budget=BUDGET, window=WINDOW, prune_below=0)
    decisions = []
    for samples in np.linspace(2_000, WINDOW, 10):
        for key, rate in {"a": 1.5, "b": 1.0}.items():
            decisions += race.report(key, float(samples), float(shared_curve(np.array(rate * samples))))
    (won,) = [decision for decision in decisions if decision.state is State.WON]
    race.report("a", WINDOW + 1_000, 3.0)
    before = repr(race.standings())
    race.fail("a", "its process died")
    assert race.failed_winner == "a"
    (decision,) = race.retry(race.failed)
    assert decision.state is State.WON
    assert decision.reason == f"{won.reason}; retried"
    assert (decision.samples, decision.loss, decision.probability_best) == (won.samples, won.loss, won.probability_best)
    assert race.winner == "a"
    assert repr(race.standings()).replace("; retried", "") == before


def test_retry_reopens_only_races_decided_by_failures() -> None:
    rates = {"a": 1.5, "b": 1.0, "c": 0.9}
    decided = Race(rates, budget=BUDGET, window=WINDOW, prune_below=0)
    decided.fail("c", "its process died")
    replay(decided, rates)
    assert decided.winner == "a"
    assert decided.retry("c") == []
    by_default = Race("ab", budget=BUDGET, window=WINDOW, prune_below=0)
    by_default.report("b", 1_000, 5.0)
    by_default.fail("a", "its process died")
    assert by_default.winner == "b"
    by_default.fail("b", "its process died")
    assert {d.key: d.state for d in by_default.retry("ab")} == dict.fromkeys("ab", State.RACING)
    assert replay(by_default, rates).winner == "a"


def test_single_candidate_wins_at_once() -> None:
    race = Race("a", budget=BUDGET, window=WINDOW)
    (decision,) = race.report("a", 1_000, 5.0)
    assert decision.state is State.WON


def test_equal_candidates_have_one_winner() -> None:
    race = replay(Race("abc", budget=BUDGET, window=WINDOW), dict.fromkeys("abc", 1.0))
    assert race.winner in ("a", "b", "c")
    assert len(race.failures()) == 2


def test_axis_seconds_prefers_throughput_and_samples_prefers_efficiency() -> None:
    pace = {"quick": 200.0, "slow": 100.0}
    seconds = Race(pace, budget=1_000, window=150, axis="seconds", prune_below=0)
    replay(seconds, {"quick": 1.0, "slow": 1.0}, pace=pace)
    assert [d.key for d in seconds.standings() if d.probability_best > 0.8] == ["quick"]
    samples = Race(pace, budget=BUDGET, window=WINDOW, prune_below=0)
    replay(samples, {"quick": 1.0, "slow": 1.15}, pace=pace)
    assert samples.winner == "slow"


def test_replay_is_deterministic() -> None:
    rates = {"a": 1.1, "b": 1.0, "c": 0.4}
    first, second = (replay(Race(rates, budget=BUDGET, window=WINDOW), rates) for _ in range(2))
    assert first.standings() == second.standings()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"budget": 10, "window": 20}, "20"),
        ({"budget": 10, "window": 0}, "0"),
        ({"budget": math.inf, "window": 5}, "inf"),
        ({"budget": 10, "window": 5, "axis": "steps"}, "steps"),
        ({"budget": 10, "window": 5, "rule": "guess"}, "'guess' is unknown: use 'halving' or 'forecast'"),
        ({"budget": 10, "window": 5, "prune_below": 1}, "1"),
        ({"budget": 10, "window": 5, "tolerance": -0.01}, "-0.01"),
        ({"budget": 10, "window": 5, "min_reports": 0}, "0"),
    ],
)
def test_rejects_numbers_out_of_range(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Race("ab", **settings)


def test_rejects_duplicates() -> None:
    with pytest.raises(ValueError, match="'a' appears twice"):
        Race("aba", budget=2, window=1)
