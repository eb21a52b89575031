"""Further races in Ray Tune.

Tests that depend on processes start them (``run``); all others run in this process (``run_here``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import TuneError

from schedulers import State
from tests.schedulers.tune.in_process import run_here
from tests.schedulers.tune.walkers import (
    BUDGET,
    STEP,
    WINDOW,
    Forgetful,
    Walker,
    last,
    run,
    seen,
    walk,
    walk_like_train,
    walk_with_checkpoints,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

#: Efficiencies before and after the fork.
RATES = {"a": 1.4, "b": 0.9, "c": 0.8}
FORK = 16_000
TURN = {"turn": FORK, "later": {"a": 0.7, "b": 1.6, "c": 0.8}}
#: The origin of each trial's weights, with the samples at which it took them over.
LINEAGE = {"a": "a@0", "b": f"a@0 b@{FORK}", "c": f"a@0 c@{FORK}"}
AGAIN: dict[str, Any] = {"rerace": {"at": [FORK / BUDGET]}, "rerace_window": 6_000, "prune_below": 0}


@pytest.mark.parametrize(
    ("start", "trainable", "cpus"),
    [(run, Walker, 2.0), (run_here, walk_with_checkpoints, 0.5)],
    ids=["classes in turns", "functions all at once"],
)
def test_all_trials_fork_from_the_winner_and_another_wins(
    start: Any, trainable: Any, cpus: float, tmp_path: Path
) -> None:
    results, scheduler = start(trainable, RATES, tmp_path, extra=TURN, cpus=cpus, **AGAIN)
    assert not results.errors
    assert [race.start for race in scheduler.series.races] == [0, FORK]
    assert scheduler.race.winner == "b"
    assert seen(results) == {"a": FORK + 6_000, "b": BUDGET, "c": FORK + 6_000}
    assert {key: metrics["lineage"] for key, metrics in last(results).items()} == LINEAGE
    assert {metrics["trial_id"] for metrics in last(results).values()} == {
        trial.trial_id for trial in scheduler._trials.by_key.values()
    }
    assert "the winner: " in last(results)["a"]["stop_reason"]
    forked = next(d for d in scheduler.decisions if d.key == "c" and d.state is State.RACING)
    assert "forks from a after 16,000 samples: 40% of the budget spent" in forked.reason


def test_ray_train_trials_fork_by_checkpoint_path(tmp_path: Path) -> None:
    extra = {**TURN, "storage": str(tmp_path), "run_tag": "start", "resume_from": None, "workers": 1}
    results, scheduler = run(walk_like_train, RATES, tmp_path, extra=extra, winner_config={"workers": 3}, **AGAIN)
    assert not results.errors
    assert scheduler.race.winner == "b"
    assert seen(results) == {"a": FORK + 6_000, "b": BUDGET, "c": FORK + 6_000}
    assert {key: metrics["lineage"] for key, metrics in last(results).items()} == LINEAGE
    assert {key: metrics["workers"] for key, metrics in last(results).items()} == {"a": 1, "b": 3, "c": 1}
    frames = {r.config["candidate"]: r.metrics_dataframe for r in results if r.config}
    assert frames["a"] is not None
    workers = dict(zip(frames["a"]["samples_seen"], frames["a"]["workers"], strict=True))
    assert (workers[WINDOW], workers[WINDOW + STEP], workers[FORK], workers[FORK + STEP]) == (1, 3, 3, 1)


def test_fork_with_one_checkpoint_kept(tmp_path: Path) -> None:
    keep = {"checkpoint_config": tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1)}
    results, scheduler = run_here(Walker, RATES, tmp_path, extra=TURN, cpus=2.0, run_config=keep, **AGAIN)
    assert not results.errors
    assert last(results)["c"]["lineage"] == f"a@0 c@{FORK}"
    assert scheduler.race.winner == "b"


def test_underperforming_winner_starts_another_race(tmp_path: Path) -> None:
    turn = {"turn": WINDOW + 2 * STEP, "later": {"a": 0.0, "b": 1.2, "c": 1.0}}
    results, scheduler = run_here(Walker, RATES, tmp_path, extra=turn, rerace="on_deviation", prune_below=0)
    assert not results.errors
    assert len(scheduler.series.races) >= 2
    assert scheduler.series.races[1].winner == "b"
    assert "above the forecast" in next(d.reason for d in scheduler.decisions if "again" in d.reason)
    assert seen(results)[scheduler.race.winner] == BUDGET


def test_pruned_trials_race_again_and_failed_ones_do_not(tmp_path: Path) -> None:
    extra = {**TURN, "nan_at": {"n": 3 * STEP}, "raises_at": {"r": 2 * STEP}}
    rates = {"a": 1.4, "b": 0.3, "n": 1.0, "r": 1.0}
    results, scheduler = run_here(Walker, rates, tmp_path, extra=extra, **{**AGAIN, "prune_below": 0.05})
    assert len(results.errors) == 1
    assert set(scheduler.race.keys) == {"a", "b"}
    assert scheduler.race.winner == "b"
    assert "nan" in last(results)["n"]["stop_reason"]


def test_failed_fork_is_retried_from_the_fork(tmp_path: Path) -> None:
    extra = {**TURN, "raises_at": {"b": FORK + 3 * STEP}, "flaky": str(tmp_path / "failed")}
    retry = {"failure_config": tune.FailureConfig(max_failures=1)}
    results, scheduler = run_here(Walker, RATES, tmp_path, extra=extra, run_config=retry, **AGAIN)
    assert (tmp_path / "failed").exists()
    assert scheduler.race.winner == "b"
    assert last(results)["b"]["lineage"] == f"a@0 b@{FORK}"


def test_no_trial_waits_after_the_winner_stops(tmp_path: Path) -> None:
    for name, extra in {"ends": {"ends_at": {"a": 12_000}}, "fails": {"raises_at": {"a": 12_000}}}.items():
        results, scheduler = run_here(Walker, RATES, tmp_path / name, extra=extra, **AGAIN)
        assert len(scheduler.series.races) == 1
        assert seen(results)["b"] == WINDOW
        assert "the winner: " in last(results)["b"]["stop_reason"]


def test_rejects_trials_that_cannot_be_paused(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=r"walk has reported without a checkpoint; report one with every result"):
        run_here(walk, RATES, tmp_path / "function", **AGAIN)
    with pytest.raises(ValueError, match="Forgetful has no save_checkpoint"):
        run_here(Forgetful, RATES, tmp_path / "class", **AGAIN)
