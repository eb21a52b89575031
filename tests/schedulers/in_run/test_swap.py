from __future__ import annotations

import json
import math
from typing import Any

import pytest

from schedulers import Candidate
from schedulers.in_run.swap import SwapOnDeviation
from tests.schedulers.in_run.runs import BUDGET, CANDIDATES, EVERY, constant, run

#: Efficiencies from a race: 32 is the best, 128 is close.
RACED = {"32": (0.2, 0.2), "128": (0.1, 0.2), "512": (-0.3, 0.2)}


def policy(**settings: Any) -> SwapOnDeviation:
    return SwapOnDeviation(CANDIDATES, **{"budget": BUDGET, "rates": RACED, **settings})


def turning(fraction: float) -> dict[str, float]:
    """From 40 % of the run on, the smallest batch size is three times less efficient than the next."""
    return {"32": 1.0 if fraction <= 0.4 else 0.3, "128": 0.9, "512": 0.6}


@pytest.mark.parametrize("seed", range(3))
def test_run_as_forecast_keeps_its_candidate(seed: int) -> None:
    reports, decisions, _ = run(policy(), constant(1.0, 0.9, 0.6), seed=seed)
    assert set(reports) == {"32"}
    assert {decision.action for decision in decisions} == {"keep"}


@pytest.mark.parametrize("seed", range(3))
def test_underperforming_candidate_is_swapped_for_the_next_best(seed: int) -> None:
    _, decisions, progress = run(policy(), turning, seed=seed)
    swap, verdict = [decision for decision in decisions if decision.action != "keep"][:2]
    assert (swap.action, swap.candidate, swap.chosen) == ("swap", "32", "128")
    assert swap.deviation < -1
    assert swap.samples > 0.4 * BUDGET
    assert (verdict.action, verdict.chosen) == ("confirm", "128")
    assert verdict.samples - swap.samples == 4 * EVERY
    assert progress > 0.85  # 0.58 without a swap, 0.94 with an immediate one


def test_returns_from_a_worse_candidate_and_tries_the_next() -> None:
    def worsening(fraction: float) -> dict[str, float]:  # all get worse, the others more
        return {"32": 1.0, "128": 0.9, "512": 0.6} if fraction <= 0.4 else {"32": 0.3, "128": 0.05, "512": 0.04}

    _, decisions, _ = run(policy(), worsening, noise=0.001)
    actions = [(decision.action, decision.chosen) for decision in decisions if decision.action != "keep"]
    assert actions[:2] == [("swap", "128"), ("return", "32")]
    assert [chosen for action, chosen in actions if action == "swap"][1:2] in ([], ["512"])


def test_decisions_contain_their_numbers() -> None:
    _, decisions, _ = run(policy(), turning)
    for decision in decisions[1:]:
        entry = decision.as_dict()
        assert json.loads(json.dumps(entry)) == entry
        assert entry["forecast_std"] > 0
        assert set(entry["rates"]) == {"32", "128", "512"}
        mean = (entry["forecast"] - entry["actual"]) / entry["forecast_std"]
        assert math.isfinite(entry["deviation"])
        if abs(entry["deviation"]) > 2:
            assert entry["deviation"] * mean > 0
    assert decisions[0].as_dict()["forecast"] is None


def test_restore_gives_the_same_decisions() -> None:
    whole, restored = policy(), policy()
    _, expected, _ = run(whole, turning)
    middle = BUDGET // 2
    first = policy()
    run(first, turning, samples=(0, middle))
    restored.restore(json.loads(json.dumps(first.state())))
    assert restored.current == first.current
    # The synthetic run has no checkpoint: it is repeated, and only the later part is reported.
    again = policy()
    for samples, seconds, loss in whole.state()["reports"]:
        if samples <= middle:
            again.report(samples, loss, seconds)
        else:
            assert restored.current == again.current
            assert restored.report(samples, loss, seconds) == again.report(samples, loss, seconds)
    assert again.current == whole.current
    assert expected


def test_axis_seconds_tries_the_faster_of_equals_first() -> None:
    def failing(fraction: float) -> dict[str, float]:
        return {"32": 1.0 if fraction <= 0.4 else 0.2, "128": 0.9, "512": 0.9}

    alike = {"32": (0.2, 0.2), "128": (0.0, 0.2), "512": (0.0, 0.2)}
    throughputs = {"32": 1000.0, "128": 1000.0, "512": 3000.0}

    def first_swap(axis: str) -> str:
        swapping = policy(axis=axis, rates=alike, throughputs=throughputs)
        _, decisions, _ = run(swapping, failing, throughputs=throughputs)
        return next(decision.chosen for decision in decisions if decision.action == "swap")

    assert first_swap("seconds") == "512"
    assert first_swap("samples") == "128"


def test_choices_by_measured_throughput_do_not_depend_on_the_clock() -> None:
    def choices(**seconds: Any) -> list[tuple[float, str]]:
        measured = {"32": 1000.0, "128": 1000.0, "512": 3000.0}
        swapping = policy(axis="seconds", throughputs=measured)
        _, decisions, _ = run(swapping, lambda at: {"32": 1.0 if at <= 0.4 else 0.2, "128": 0.5, "512": 0.9}, **seconds)
        return [(decision.samples, decision.chosen) for decision in decisions]

    slow = {"throughputs": {"512": 10.0, "128": 1e6}}
    assert choices() == choices(**slow)
    assert len(set(choices())) > 2


def test_no_swap_near_the_end() -> None:
    def failing_late(fraction: float) -> dict[str, float]:
        return {"32": 1.0 if fraction <= 0.75 else 0.0, "128": 0.9, "512": 0.6}

    reports, decisions, _ = run(policy(), failing_late, noise=0.0005)
    assert set(reports) == {"32"}
    assert any("too little of the budget" in decision.reason for decision in decisions)


def test_single_candidate_is_kept() -> None:
    alone = SwapOnDeviation([Candidate(32)], budget=BUDGET)
    reports, decisions, _ = run(alone, turning)
    assert set(reports) == {"32"}
    assert any("no other candidate" in decision.reason for decision in decisions)


def test_non_finite_losses_do_not_raise() -> None:
    swapping = policy()
    for at in range(EVERY, BUDGET, EVERY):
        swapping.report(at, math.nan if at % 3 else 5.0 - at / BUDGET, at / 1000)


@pytest.mark.parametrize(
    ("candidates", "settings", "named"),
    [
        ([], {}, "at least one"),
        ([Candidate(32), Candidate(32)], {}, "twice"),
        (CANDIDATES, {"axis": "steps"}, "axis"),
        (CANDIDATES, {"patience": 1}, "patience"),
        (CANDIDATES, {"threshold": -1.0}, "threshold"),
    ],
)
def test_rejects_settings_out_of_range(candidates: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SwapOnDeviation(candidates, budget=BUDGET, **settings)
