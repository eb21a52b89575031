"""The scheduler in Ray Tune, with trainables that walk down known curves: one race.

What depends on processes has them (``run``); all else runs in this one (``run_here``).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune import ResultGrid, TuneError

from schedulers import LossExtrapolationScheduler, State
from tests.schedulers.curves import shared_curve
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


def samples_of(results: ResultGrid, candidate: str) -> list[int]:
    """Every number of samples that a candidate has reported."""
    result = next(result for result in results if result.config and result.config["candidate"] == candidate)
    assert result.metrics_dataframe is not None
    samples: list[int] = result.metrics_dataframe["samples_seen"].tolist()
    return samples


@pytest.mark.parametrize("best", ["a", "c"])
def test_the_winner_changes_with_the_curves_and_alone_runs_to_the_end(best: str, tmp_path: Path) -> None:
    rates = {key: 1.4 if key == best else 0.9 for key in "abc"}
    results, scheduler = run_here(Walker, rates, tmp_path, prune_below=0)
    assert scheduler.race.winner == best
    reached = seen(results)
    assert reached.pop(best) == BUDGET
    assert all(samples == WINDOW for samples in reached.values())
    assert not results.errors
    assert f"won by {best}" in scheduler.debug_string()


def test_the_hopeless_are_stopped_before_the_window_is_spent_and_their_results_say_why(tmp_path: Path) -> None:
    (tmp_path / "crowd").mkdir()
    crowd = {"crowd": (str(tmp_path / "crowd"), 3)}
    results, scheduler = run(Walker, {"a": 1.2, "b": 1.15, "c": 0.3}, tmp_path, extra=crowd)
    assert seen(results)["c"] < WINDOW
    assert scheduler.race.winner in ("a", "b")
    assert "probability" in scheduler.race.failures()["c"]
    reasons = {key: metrics["stop_reason"] for key, metrics in last(results).items()}
    winner = scheduler.race.winner
    assert reasons.pop(winner) == "has spent the budget of 40,000 samples"
    assert reasons == scheduler.race.failures()
    restored = tune.Tuner.restore(str(tmp_path / "race"), Walker).get_results()  # what the files say
    assert {key: metrics["stop_reason"] for key, metrics in last(restored).items() if key != winner} == reasons
    assert not restored.errors


def test_a_paused_winner_is_taken_up_from_its_checkpoint_once(tmp_path: Path) -> None:
    results, scheduler = run(Walker, {"a": 1.4, "b": 0.9}, tmp_path, prune_below=0)
    samples = samples_of(results, "a")
    assert samples == sorted(set(samples))  # no sample twice
    assert last(results)["a"]["starts"] <= 2
    assert [d.state for d in scheduler.decisions if d.key == "a"][-1] is State.WON


def test_a_function_without_checkpoints_is_never_paused(tmp_path: Path) -> None:
    results, scheduler = run_here(walk, {"a": 1.4, "b": 0.9}, tmp_path, prune_below=0)
    assert scheduler.race.winner == "a"
    assert samples_of(results, "a") == list(range(STEP, BUDGET + STEP, STEP))


def test_a_winner_like_a_ray_train_run_is_restarted_with_its_new_configuration(tmp_path: Path) -> None:
    extra = {"storage": str(tmp_path), "run_tag": "start", "resume_from": None, "workers": 1}
    results, scheduler = run(
        walk_like_train, {"a": 1.4, "b": 0.9}, tmp_path, extra=extra, prune_below=0, winner_config={"workers": 3}
    )
    assert scheduler.race.winner == "a"
    winner = last(results)["a"]
    assert (winner["samples_seen"], winner["workers"]) == (BUDGET, 3)
    assert last(results)["b"]["workers"] == 1
    samples = samples_of(results, "a")
    assert samples == list(range(STEP, BUDGET + STEP, STEP))


def test_candidates_that_raise_or_lose_their_loss_are_pruned_and_the_race_goes_on(tmp_path: Path) -> None:
    rates = {"raises": 3.0, "nan": 2.0, "sound": 1.0, "slow": 0.9}
    extra = {"raises_at": {"raises": 2 * STEP}, "nan_at": {"nan": 3 * STEP}}
    results, scheduler = run_here(Walker, rates, tmp_path, extra=extra, prune_below=0)
    reasons = scheduler.race.failures()
    assert "RuntimeError: out of luck" in reasons["raises"]
    assert "nan" in reasons["nan"]
    assert scheduler.race.winner == "sound"
    assert seen(results)["sound"] == BUDGET
    assert last(results)["nan"]["stop_reason"] == reasons["nan"]


def test_a_failure_that_tune_retries_is_no_failure(tmp_path: Path) -> None:
    """With two candidates, pruning the one that fails would end the race at once, and wrongly."""
    extra = {"raises_at": {"a": 4 * STEP}, "flaky": str(tmp_path / "failed")}
    retry = {"failure_config": tune.FailureConfig(max_failures=1)}
    results, scheduler = run_here(Walker, {"a": 1.4, "b": 0.9}, tmp_path, extra=extra, run_config=retry, prune_below=0)
    assert (tmp_path / "failed").exists()
    assert scheduler.race.winner == "a"
    assert seen(results) == {"a": BUDGET, "b": WINDOW}
    assert len(scheduler.race.curve("a")[0]) == BUDGET / STEP  # what was repeated counts once


def test_processes_that_die_are_restarted_and_what_would_fail_again_is_not(tmp_path: Path) -> None:
    """With ``FailureConfig``; killed before the first report, in the race, twice at one place, and in the stretch."""
    extra = {
        "storage": str(tmp_path), "run_tag": "start", "resume_from": None,
        "dies_at": {"a": [STEP, 5 * STEP, 6 * STEP, 20 * STEP], "b": [3 * STEP]},
        "gives_up_at": {"fatal": 4 * STEP}, "nan_at": {"nan": 2 * STEP},
    }  # fmt: skip
    retry = {"failure_config": tune.FailureConfig(max_failures=1)}  # in a row
    rates = {"a": 1.4, "b": 0.9, "fatal": 3.0, "nan": 3.0}
    results, scheduler = run(walk_like_train, rates, tmp_path, extra=extra, run_config=retry, prune_below=0)
    series, race = scheduler.series, scheduler.race
    assert race.winner == "a"
    assert samples_of(results, "a") == list(range(STEP, BUDGET + STEP, STEP))  # nothing twice, nothing left out
    assert seen(results) == {"a": BUDGET, "b": WINDOW, "fatal": 3 * STEP, "nan": 2 * STEP}
    losses = [float(shared_curve(np.array(1.4 * at))) for at in range(STEP, BUDGET + STEP, STEP)]
    assert race.curve("a")[1] == pytest.approx(losses)
    assert series.failed == {
        "fatal": "failed: ValueError: there is no such loss",
        "nan": "loss became nan after 2,000 samples",
    }
    restarts = [(restart.candidate, restart.samples) for restart in series.restarts]
    assert [at for key, at in restarts if key == "a"] == [0, 4 * STEP, 5 * STEP, 19 * STEP]
    assert [at for key, at in restarts if key == "b"] == [2 * STEP]
    assert len(restarts) == 5
    assert all("process" in restart.reason and "(ImplicitFunc)" in restart.reason for restart in series.restarts)


def test_without_a_survivor_the_experiment_ends_and_every_reason_is_known(tmp_path: Path) -> None:
    _, scheduler = run_here(Walker, {"a": 1.0, "b": 1.0}, tmp_path, extra={"nan_at": STEP})
    # The first to fail leaves the second alone, which has won for a moment before it fails too.
    assert scheduler.race.over
    assert scheduler.race.winner is None
    assert set(scheduler.race.failures()) == {"a", "b"}
    assert all("nan" in reason for reason in scheduler.race.failures().values())


def test_results_without_the_metric_are_ignored_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"silent_until": {"a": 2 * STEP, "c": 2 * BUDGET}}
    with caplog.at_level(logging.WARNING, "schedulers"):
        results, scheduler = run_here(Walker, {"a": 1.4, "b": 0.9, "c": 0.9}, tmp_path, extra=extra, prune_below=0)
    assert scheduler.race.winner == "a"
    assert seen(results) == {"a": BUDGET, "b": WINDOW, "c": WINDOW}
    assert "without reporting 'loss'" in last(results)["c"]["stop_reason"]
    assert [record.message for record in caplog.records if "ignored" in record.message] != []
    assert sum("ignored" in record.message for record in caplog.records) == 1


def test_a_metric_that_nobody_reports_is_an_error_before_the_window_is_spent(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="no trial has reported the metric 'los'; did you mean 'loss'") as caught:
        run_here(Walker, {"a": 1.4, "b": 0.9}, tmp_path, metric="los")
    assert "Reported were: loss, samples_seen, score, starts. Set metric to one of them" in str(caught.value)
    restored = tune.Tuner.restore(str(tmp_path / "race"), Walker).get_results()
    assert all(samples < WINDOW / 2 for samples in seen(restored).values())
    results, scheduler = run_here(Walker, {"a": 1.4}, tmp_path / "short", metric="los", extra={"ends_at": STEP})
    assert "did you mean 'loss'? Reported were: loss" in last(results)["a"]["stop_reason"]
    assert scheduler.race.winner is None


def test_the_metric_of_tune_config_and_a_second_experiment_that_starts_from_nothing(tmp_path: Path) -> None:
    scheduler = LossExtrapolationScheduler(budget=BUDGET, window=WINDOW, prune_below=0)
    for best, other, metric, mode in (("a", "b", "loss", "min"), ("b", "a", "score", "max")):
        rates, goal = {best: 1.4, other: 0.9}, {"metric": metric, "mode": mode}
        results, _ = run_here(Walker, rates, tmp_path / metric, scheduler=scheduler, tune_config=goal)
        assert scheduler.race.winner == best
        assert seen(results) == {best: BUDGET, other: WINDOW}
        assert len(scheduler.series.races[0].curve(other)[0]) == WINDOW / STEP
        winner = results.get_best_result(scope="last").config
        assert winner is not None
        assert winner["candidate"] == best


def test_without_the_time_attribute_the_reason_says_what_there_is(tmp_path: Path) -> None:
    results, _ = run_here(Walker, {"a": 1.4, "b": 0.9}, tmp_path, time_attr="images")
    for metrics in last(results).values():
        assert "does not report 'images': report it, or set time_attr to one of" in metrics["stop_reason"]
        assert "samples_seen" in metrics["stop_reason"]
        assert metrics["samples_seen"] == STEP


@pytest.mark.parametrize("rates", [{"only": 1.0}, dict.fromkeys("abc", 1.0)], ids=["one", "all equal"])
def test_one_candidate_and_equal_ones_end_with_one_winner(rates: dict[str, float], tmp_path: Path) -> None:
    results, scheduler = run_here(Walker, rates, tmp_path)
    assert scheduler.race.winner in rates
    assert sorted(seen(results).values())[-1] == BUDGET
    assert sum(samples == BUDGET for samples in seen(results).values()) == 1


def test_candidates_that_come_to_their_own_end_stay_in_the_race(tmp_path: Path) -> None:
    results, scheduler = run_here(Walker, {"a": 1.4, "b": 0.9}, tmp_path, extra={"ends_at": 5 * STEP}, prune_below=0)
    assert scheduler.race.winner == "a"
    assert set(seen(results).values()) == {5 * STEP}


FIVE = {"a": 0.8, "b": 0.9, "c": 1.0, "d": 1.5, "e": 0.7}


@pytest.mark.parametrize(
    ("trainable", "limit"),
    [(Walker, "max_concurrent_trials"), (walk_with_checkpoints, "resources")],
    ids=["classes by max_concurrent_trials", "functions by resources"],
)
def test_more_candidates_than_slots_run_in_turns(trainable: Any, limit: str, tmp_path: Path) -> None:
    many = {"cpus": 2.0} if limit == "resources" else {"cpus": 0.5, "tune_config": {"max_concurrent_trials": 2}}
    results, scheduler = run_here(trainable, FIVE, tmp_path, prune_below=0, **many)
    assert scheduler.race.winner == "d"
    assert seen(results) == {**dict.fromkeys(FIVE, WINDOW), "d": BUDGET}
    assert not results.errors


def test_nobody_is_pruned_before_the_last_one_has_had_its_turn(tmp_path: Path) -> None:
    _, scheduler = run_here(Walker, {**FIVE, "e": 2.5}, tmp_path, cpus=2.0, prune_below=0.3, min_reports=4)
    first = next(d for d in scheduler.decisions if d.state is State.PRUNED)
    assert scheduler.race.winner == "e"
    assert "probability" in first.reason
    assert all(len(scheduler.race.curve(key)[0]) >= 4 for key in FIVE)


def test_functions_without_checkpoints_keep_their_slots_to_the_end_and_nothing_hangs(tmp_path: Path) -> None:
    results, scheduler = run_here(walk, FIVE, tmp_path, cpus=2.0, prune_below=0)
    assert scheduler.race.winner == "d"
    reached = seen(results)
    assert reached["a"] == reached["b"] == BUDGET  # they had to come to their end before the others could begin
    assert reached["e"] < BUDGET


@pytest.mark.parametrize("trainable", [Walker, walk], ids=["class", "function"])
def test_failures_make_room_for_those_that_wait(trainable: Any, tmp_path: Path) -> None:
    extra = {"raises_at": {"a": STEP, "b": 3 * STEP}}
    limit = {"max_concurrent_trials": 2}
    results, scheduler = run_here(trainable, FIVE, tmp_path, extra=extra, tune_config=limit, prune_below=0)
    assert scheduler.race.winner == "d"
    assert seen(results)["d"] == BUDGET
    assert {"a", "b"} <= set(scheduler.race.failures())


def test_a_class_that_cannot_be_saved_is_never_paused(tmp_path: Path) -> None:
    never = {"checkpoint_config": tune.CheckpointConfig(checkpoint_at_end=False)}
    results, scheduler = run_here(Forgetful, {"a": 1.4, "b": 0.9}, tmp_path, run_config=never, prune_below=0)
    assert scheduler.race.winner == "a"
    assert seen(results)["a"] == BUDGET


def test_trials_need_a_metric_and_names_of_their_own(tmp_path: Path) -> None:
    scheduler = LossExtrapolationScheduler(budget=BUDGET, window=WINDOW)
    with pytest.raises(ValueError, match="no metric to compare trials by"):
        run_here(Walker, {"a": 1.0}, tmp_path, scheduler=scheduler)
    with pytest.raises(ValueError, match="two trials have candidate 'a'"):
        run_here(Walker, {"a": 1.0}, tmp_path, tune_config={"num_samples": 2})
    with pytest.raises((ValueError, TuneError), match="never ends"):
        run_here(Walker, {"a": 1.0}, tmp_path, tune_config={"num_samples": -1})


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"predictor": "oracle"}, "oracle"), ({"mode": "most"}, "most"), ({"window": BUDGET * 2}, "80,000")],
)
def test_refuses_what_it_does_not_know_and_names_it(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LossExtrapolationScheduler(**{"budget": BUDGET, "window": WINDOW, **settings})
