"""Race series on synthetic curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers import State
from schedulers.events import Event, from_json, to_json
from schedulers.race_series import RaceSeries
from tests.schedulers.curves import shared_curve

BUDGET, WINDOW, STEP = 40_000, 8_000, 1_000


def series(**settings: Any) -> RaceSeries:
    return RaceSeries(**{"budget": BUDGET, "window": WINDOW, "prune_below": 0, **settings})


def run(
    series: RaceSeries, rates: Mapping[str, float], *, later: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Trains all candidates to the end as a scheduler would; from the first fork on with the ``later`` rates.

    Returns:
        The last reported samples of every candidate.
    """
    progress, seen = dict.fromkeys(rates, 0.0), dict.fromkeys(rates, 0.0)
    for key in rates:
        series.enter(key)
    races = 1
    while any(at < BUDGET for at in seen.values()):
        race = series.race
        moving = [key for key in rates if race.over and key == race.winner]
        moving = moving or [key for key in race.alive if not race.over and race.state(key) is State.RACING]
        if not moving or all(seen[key] >= BUDGET for key in moving):
            break
        for key in moving:
            if len(series.races) > races:
                break
            seen[key] += STEP
            progress[key] += STEP * (later if later and races > 1 else rates)[key]
            series.report(key, seen[key], float(shared_curve(np.array(progress[key]))))
        if len(series.races) > races:
            races = len(series.races)
            for key in series.race.keys:
                seen[key], progress[key] = seen[series.source], progress[series.source]
    return seen


def race_all(races: RaceSeries, rates: Mapping[str, float], until: float = WINDOW) -> None:
    """Enters all candidates and reports their losses on one grid, in turns."""
    for key in rates:
        races.enter(key)
    for samples in np.arange(STEP, until + STEP, STEP):
        for key, rate in rates.items():
            races.report(key, float(samples), float(shared_curve(rate * samples)))


def test_forecasts_use_the_reported_learning_rate() -> None:
    ends = {}
    for name, rate in {"unknown": math.nan, "constant": 0.1, "decaying": None}.items():
        races = series(window=BUDGET, averaged=True)
        races.enter("a")
        for at in range(STEP, 12 * STEP + 1, STEP):
            loss = float(shared_curve(np.array(at)))
            races.report("a", at, loss, learning_rate=1.0 - at / BUDGET if rate is None else rate)
        ends[name] = races.race.forecast("a", BUDGET).mean
        copied = series(window=BUDGET, averaged=True)
        for event in races.events:
            copied.take(from_json(to_json(event)))
        assert copied.race.forecast("a", BUDGET).mean == ends[name]
    assert ends["constant"] == pytest.approx(float(shared_curve(np.array(BUDGET))), abs=0.01)
    assert ends["constant"] < ends["decaying"] - 0.01
    assert ends["constant"] < ends["unknown"] - 0.01


def test_winner_continues_alone_without_rerace() -> None:
    races = series()
    assert run(races, {"a": 1.3, "b": 0.9}) == {"a": BUDGET, "b": WINDOW}
    assert races.race.winner == "a"
    assert not races.may_race_again


def test_rerace_at_a_fraction_of_the_budget_may_change_the_winner() -> None:
    races = series(rerace={"at": [0.3]}, rerace_window=4_000)
    run(races, {"a": 1.3, "b": 0.9, "c": 0.8}, later={"a": 0.8, "b": 1.4, "c": 0.9})
    assert len(races.races) == 2
    assert races.source == "a"
    assert races.race.start == 0.3 * BUDGET
    assert races.race.winner == "b"
    assert "30% of the budget" in next(d.reason for d in races.decisions if d.key == "a" and "again" in d.reason)
    assert "forks from a after 12,000 samples" in next(
        d.reason for d in races.decisions if d.key == "c" and d.state is State.RACING
    )
    assert "loss" in races.reason("c")
    forked = [d.samples for d in races.decisions if d.state is State.RACING and "forks" in d.reason]
    assert forked == [races.race.start] * 2


def test_rerace_at_several_fractions() -> None:
    races = series(rerace={"at": [0.3, 0.6]}, rerace_window=4_000)
    run(races, {"a": 1.3, "b": 0.9})
    assert [race.start for race in races.races] == [0, 12_000, 24_000]
    assert not races.may_race_again


def test_rerace_on_deviation() -> None:
    def winner(loss_grows: float) -> RaceSeries:
        races = series(rerace="on_deviation", patience=3)
        race_all(races, {"a": 1.3, "b": 0.9})
        for samples in range(WINDOW + STEP, 3 * WINDOW, STEP):
            if len(races.races) == 1:
                loss = float(shared_curve(np.array(1.3 * samples)))
                races.report("a", samples, loss + loss_grows * (samples - WINDOW))
        return races

    assert len(winner(0.0).races) == 1
    underperformed = winner(1e-3)
    assert len(underperformed.races) == 2
    assert "standard deviations above the forecast on average" in underperformed.decisions[-1].reason
    assert underperformed.race.start == WINDOW + 3 * STEP


def test_no_rerace_in_the_last_window() -> None:
    races = series(rerace="on_deviation", patience=1)
    race_all(races, {"a": 1.3, "b": 0.9})
    assert races.may_race_again
    races.report("a", BUDGET - WINDOW + STEP, 100.0)
    assert len(races.races) == 1
    assert not races.may_race_again


def test_failed_and_finished_candidates_do_not_race_again() -> None:
    races = series(rerace={"at": [0.3]})
    for key in "bcade":
        races.enter(key)
    races.fail("b", "crashed")
    races.report("c", STEP, math.nan)
    race_all(races, {"a": 1.3, "d": 0.9, "e": 0.8})
    races.complete("e")
    races.report("a", 0.3 * BUDGET, 3.0)
    assert races.race.keys == ["a", "d"]
    assert races.reason("b") == "crashed"
    assert races.state("b") is State.PRUNED


@pytest.mark.parametrize("gone", ["fail", "complete"])
def test_candidates_fail_when_their_source_stops_before_the_fork(gone: str) -> None:
    races = series(rerace={"at": [0.3]})
    race_all(races, {"a": 1.3, "b": 0.9, "c": 0.8})
    races.report("a", 0.3 * BUDGET, 3.0)
    assert races.unforked == ["b", "c"]
    races.fail("a", "crashed") if gone == "fail" else races.complete("a")
    assert races.race.over
    assert races.race.winner == (None if gone == "fail" else "a")
    assert "no weights" in races.reason("c")
    assert not races.may_race_again


def test_no_decision_before_all_expected_candidates_enter() -> None:
    races = series(prune_below=0.2)
    races.expect(3)
    race_all(races, {"a": 1.3, "b": 0.2})
    assert {races.state(key) for key in "ab"} == {State.WAITING}
    races.enter("c")
    races.report("c", STEP, 3.0)
    assert races.state("b") is State.WAITING
    assert {d.key: d.state for d in races.expect(2)} == {}  # c races
    races.fail("c", "crashed")
    assert races.race.winner == "a"
    races.enter("d")
    assert races.state("d") is State.PRUNED
    assert "decided" in races.reason("d")


def test_repeated_and_late_reports_are_ignored() -> None:
    once, twice = series(rerace={"at": [0.3]}), series(rerace={"at": [0.3]})
    for key in "ab":
        once.enter(key)
        twice.enter(key)
    for samples in range(STEP, 14_000, STEP):
        for key, rate in {"a": 1.3, "b": 0.9}.items():
            loss = float(shared_curve(np.array(rate * samples)))
            once.report(key, samples, loss)
            twice.report(key, samples, loss)
            twice.report(key, samples, loss + 1.0)
            twice.report(key, samples - 500, 0.0)
    assert len(once.races) == 2
    assert repr(once.decisions) == repr(twice.decisions)  # nan != nan


def replay(part: RaceSeries, events: Iterable[Event]) -> None:
    for event in events:
        part.take(event)


def test_replay_from_any_event_gives_the_same_decisions() -> None:
    whole = series(rerace={"at": [0.3]}, prune_below=0.05)
    run(whole, {"a": 1.3, "b": 1.2, "c": 0.5}, later={"a": 0.8, "b": 1.4, "c": 0.9})
    assert len(whole.races) == 2
    for moment in range(0, len(whole.events), 7):
        part = series(rerace={"at": [0.3]}, prune_below=0.05)
        replay(part, whole.events[:moment])
        part = cloudpickle.loads(cloudpickle.dumps(part))
        replay(part, whole.events[moment:])
        assert repr(part.decisions) == repr(whole.decisions)  # nan != nan
        assert repr(part.race.standings()) == repr(whole.race.standings())


#: Events of candidates: mostly reports, some with a nan loss.
_HISTORIES = st.lists(
    st.tuples(
        st.sampled_from(["report"] * 8 + ["nan", "fail", "complete", "restart", "retry", "expect"]),
        st.sampled_from("abc"),
        st.floats(2.0, 6.0),
    ),
    max_size=40,
)


@given(_HISTORIES, st.data())
@settings(max_examples=60, deadline=None)
def test_history_split_anywhere_restores_the_same_state(
    history: list[tuple[str, str, float]], data: st.DataObject
) -> None:
    """With events written as lines of JSON."""

    def fresh() -> RaceSeries:
        return series(rerace={"at": [0.3]}, forecaster="last_value", prune_below=0.2, min_reports=2)

    written: list[str] = []
    whole, seen = fresh(), dict.fromkeys("abc", 0.0)
    whole.record = lambda event: written.append(json.dumps(to_json(event), allow_nan=False))
    for key in "abc":
        whole.enter(key)
    for kind, key, loss in history:
        if kind in ("report", "nan"):
            seen[key] = max(seen[key], whole.race.start) + 2 * STEP
            whole.report(key, seen[key], loss if kind == "report" else math.nan)
        elif kind == "restart":
            whole.restart(key, seen[key], "its process died")
        elif kind == "retry":
            whole.retry(whole.failed)
        elif kind == "expect":
            whole.expect(3)
        else:
            whole.fail(key, "crashed") if kind == "fail" else whole.complete(key)
        if whole.race.winner is not None:
            assert whole.race.curve(whole.race.winner)[0] or len(whole.races) > 1
    assert repr([from_json(json.loads(line)) for line in written]) == repr(whole.events)
    cut = data.draw(st.integers(0, len(written)))
    torn = fresh()
    replay(torn, (from_json(json.loads(line)) for line in written[:cut]))
    replay(torn, whole.events[cut:])
    assert repr(torn.decisions) == repr(whole.decisions)
    assert repr(torn.race.standings()) == repr(whole.race.standings())
    assert torn.failed == whole.failed
    assert repr(torn.restarts) == repr(whole.restarts)


@pytest.mark.parametrize("entry", [{}, {"event": "explode"}, {"event": "report", "candidate": "a"}, {"event": []}])
def test_rejects_invalid_events(entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not an event"):
        from_json(entry)


def test_retried_candidates_may_race_again() -> None:
    races = series(rerace={"at": [0.3]})
    for key in "abc":
        races.enter(key)
    races.fail("c", "crashed")
    assert races.failed == {"c": "crashed"}
    races.retry("c")
    assert races.failed == {}
    race_all(races, {"a": 1.3, "b": 0.9, "c": 0.8})
    assert races.race.winner == "a"
    races.fail("b", "was removed")  # it was pruned already
    assert races.failed == {}
    races.report("a", 0.3 * BUDGET, 3.0)
    assert races.race.keys == ["a", "c"]
    races.fail("a", "crashed")  # the source: c has no weights to start from
    assert set(races.failed) == {"a", "c"}
    races.retry(races.failed)
    assert races.unforked == ["c"]
    assert races.failed == {}


def test_restarts_are_recorded_and_change_no_decision() -> None:
    calm, restless = series(), series()
    race_all(calm, {"a": 1.3, "b": 0.9})
    for key in "ab":
        restless.enter(key)
    restless.restart("a", 0, "its process died")
    race_all(restless, {"a": 1.3, "b": 0.9})
    restless.restart("a", WINDOW, "its node died")
    assert [restart.reason for restart in restless.restarts] == ["its process died", "its node died"]
    assert repr(restless.decisions) == repr(calm.decisions)


def test_rerace_with_axis_seconds() -> None:
    races = series(budget=400.0, window=80.0, axis="seconds", rerace={"at": [0.5]}, rerace_window=40.0)
    races.enter("quick")
    races.enter("slow")
    for tick in range(1, 9):
        for key, pace in {"quick": 200.0, "slow": 100.0}.items():
            samples = pace * 10 * tick
            races.report(key, samples, float(shared_curve(np.array(samples))), 10.0 * tick)
    assert races.race.winner == "quick"
    for tick in range(9, 21):
        races.report("quick", 2_000 * tick, float(shared_curve(np.array(2_000 * tick))), 10.0 * tick)
    assert len(races.races) == 2
    assert races.race.start == 40_000
    races.report("slow", 40_100, 2.0, 210.0)
    assert races.state("slow") is State.RACING
    races.report("slow", 44_000, 2.0, 240.0)
    assert races.state("slow") is State.WAITING


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rerace": "always"}, "'always' is unknown"),
        ({"rerace": {"from": [0.5]}}, "'from'"),
        ({"rerace": {"at": []}}, r"\[\]"),
        ({"rerace": {"at": [1.5]}}, "1.5"),
        ({"rerace": {"at": [0.1]}}, "at 0.1 starts before the race at 0 ends at 0.2"),
        ({"rerace": {"at": [0.5, 0.4]}}, "at 0.4 starts before the race at 0.5"),
        ({"rerace": {"at": [0.9]}}, "at 0.9 leaves less"),
        ({"rerace_window": 0}, "rerace_window 0"),
        ({"rerace_window": BUDGET}, "rerace_window 40,000"),
        ({"forecaster": "oracle"}, "'oracle'"),
        ({"patience": 0}, "patience 0"),
    ],
)
def test_rejects_invalid_settings(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        series(**settings)
