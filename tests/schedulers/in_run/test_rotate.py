from __future__ import annotations

import json
import math
from typing import Any

import pytest

from schedulers.in_run.rotate import Rotation
from tests.schedulers.in_run.runs import BUDGET, CANDIDATES, EVERY, constant, run

TURN = 5 * EVERY


def rotation(**settings: Any) -> Rotation:
    return Rotation(CANDIDATES, **{"budget": BUDGET, "turn": TURN, **settings})


def test_every_candidate_has_its_turns_first() -> None:
    _, decisions, _ = run(rotation(rounds=2), constant(1.0, 1.5, 0.6))
    assert [decision.candidate for decision in decisions[:6]] == ["32", "128", "512"] * 2
    assert [decision.samples for decision in decisions] == list(range(TURN, BUDGET + 1, TURN))


@pytest.mark.parametrize(("best", "seed"), [("32", 0), ("128", 1), ("512", 2)])
def test_most_efficient_candidate_gets_most_turns(best: str, seed: int) -> None:
    rates = {"32": 0.7, "128": 0.7, "512": 0.7} | {best: 1.3}
    reports, decisions, _ = run(rotation(), lambda fraction: rates, seed=seed)
    assert max(reports, key=lambda key: reports[key]) == best
    assert reports[best] > 0.5 * reports.total()
    found = decisions[8].rates
    assert max(found, key=lambda key: found[key][0]) == best


@pytest.mark.parametrize("seed", range(3))
def test_adapts_to_changing_efficiency(seed: int) -> None:
    def turning(fraction: float) -> dict[str, float]:
        return {"32": 1.0 if fraction <= 0.4 else 0.3, "128": 0.9, "512": 0.5}

    reports, _, progress = run(rotation(), turning, seed=seed)
    assert progress > 0.7  # 0.58 with only 32
    assert reports["512"] < reports["128"]


def test_axis_seconds_compares_goodput() -> None:
    throughputs = {"32": 500.0, "128": 1000.0, "512": 3000.0}
    by_seconds, _, _ = run(rotation(axis="seconds"), constant(1.2, 1.0, 0.8), throughputs=throughputs)
    by_samples, _, _ = run(rotation(), constant(1.2, 1.0, 0.8), throughputs=throughputs)
    assert by_seconds.most_common(1)[0][0] == "512"
    assert by_samples.most_common(1)[0][0] == "32"


def test_exploration_gives_more_turns_to_others() -> None:
    greedy, _, _ = run(rotation(exploration=0.0), constant(1.0, 1.1, 0.9))
    curious, _, _ = run(rotation(exploration=3.0), constant(1.0, 1.1, 0.9))
    assert min(curious.values()) > min(greedy.values())


def test_restore_gives_the_same_choices() -> None:
    whole = rotation()
    run(whole, constant(1.0, 1.5, 0.6))
    restored = rotation()
    restored.restore(json.loads(json.dumps(whole.state())))
    assert restored.current == whole.current
    assert restored.state() == whole.state()


@pytest.mark.parametrize(
    "settings", [{"turn": 0}, {"turn": math.inf}, {"rounds": 0}, {"exploration": -1.0}, {"exploration": math.nan}]
)
def test_rejects_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        rotation(**settings)
