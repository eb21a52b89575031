"""Successive halving in a race: which candidates are pruned, when, and why."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

import pytest

from schedulers import Decision, Race, State
from schedulers.forecast import TieBreak
from schedulers.halving import halved
from schedulers.race import TOLERANCE

#: Loss at a point between 0 and 1 of the window: the later letters end lower.
SLOPES = dict(zip("abcdefgh", (1 + i / 8 for i in range(8)), strict=True))


Reports = list[tuple[str, float]]


def raced(race: Race, reports: Reports) -> dict[Hashable, Decision]:
    """Returns the last decision on each candidate after these reports, at points in percent of a window of 100."""
    decisions = [each for key, at in reports for each in race.report(key, at, 5 - SLOPES[key] * at / 100)]
    return {decision.key: decision for decision in decisions}


def in_turn(keys: str) -> Reports:
    return [(key, float(at)) for at in range(10, 101, 10) for key in keys]


def test_of_equally_fast_candidates_the_lowest_loss_wins() -> None:
    race = Race(SLOPES, budget=1000, window=100)
    for key in SLOPES:
        race.measure(key, 100.0)
    decisions = raced(race, in_turn("abcdefgh"))
    assert race.winner == "h"
    pruned = {at: {key for key, last in decisions.items() if last.samples == at} for at in (40, 60, 100)}
    assert pruned == {40: set("abcd"), 60: set("ef"), 100: set("gh")}


GRIDS = [("a", at) for at in range(21, 101, 21)] + [(key, at) for key in "bc" for at in range(20, 101, 20)]


@pytest.mark.parametrize("ahead", ["", "a", "bc", "c"])
def test_decisions_do_not_depend_on_the_order_of_reports(ahead: str) -> None:
    """``a`` reports at other points than ``b`` and ``c``; some candidates are ahead of the others."""
    race = Race("abc", budget=1000, window=100)
    order = sorted(GRIDS, key=lambda report: report[1] - 50 * (report[0] in ahead))
    first = raced(race, [(key, float(at)) for key, at in order])["a"]
    assert first.state is State.PRUNED
    assert first.reason == "loss 4.600 after 40 samples: rank 3 of 3 (best: c, 4.500)"


@pytest.mark.parametrize(("loss", "at"), [(2.9, 40), (4.9, 100)])
def test_a_candidate_that_finishes_early_does_not_stop_the_halving(loss: float, at: float) -> None:
    race = Race("abcd", budget=1000, window=100)
    race.report("a", 10, loss)
    race.complete("a")
    decisions = raced(race, in_turn("bcd"))
    assert race.winner == ("a" if loss < 3 else "d")
    assert decisions["c"].samples == at
    assert decisions["b"].samples == 40


def test_a_fork_that_ends_without_a_report_fails() -> None:
    race = Race("bcd", budget=1000, window=100, start=300)
    for key in "bcd":
        race.measure(key, 100.0)
    (failed, *_) = race.complete("b")
    assert (failed.key, failed.state, failed.reason) == ("b", State.PRUNED, "ended without reporting a loss")
    for samples in range(310, 401, 10):
        race.report("c", samples, 4 - samples / 1000)
        race.report("d", samples, 4 - samples / 900)
    assert race.winner == "d"


def test_reasons_name_the_difference_if_it_is_larger_than_the_tolerance() -> None:
    tie_break = TieBreak(0.2, {"a": 3.0, "b": 2.0, "c": 1.0})
    assert halved({"a": 2.4, "b": 4.8}, tie_break) == {"b": "a is 2.400 lower and 1.50 times as fast"}
    assert halved({"a": 2.4, "b": 2.3}, tie_break) == {"b": "a is within 0.200 of it and 1.50 times as fast"}
    assert halved({"a": 2.4, "b": 2.3}, None) == {}
    three = halved({"a": 2.4, "b": 2.0, "c": 2.5}, tie_break)
    assert three == {"c": "rank 3 of 3 (best: b, 2.000)"}


def test_every_rule_has_a_tolerance() -> None:
    for rule, prune_below in itertools.product(TOLERANCE, (0, 0.1)):
        assert Race("ab", budget=10, window=5, rule=rule, prune_below=prune_below).tolerance == TOLERANCE[rule]
