"""One race in Ray Tune, with trainables that report synthetic curves.

Tests that depend on processes start them (``run``); all others run in this process (``run_here``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune import ResultGrid, TuneError
from ray.tune.experiment import Trial

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
    """Returns all numbers of samples that a candidate has reported."""
    result = next(result for result in results if result.config and result.config["candidate"] == candidate)
    assert result.metrics_dataframe is not None
    samples: list[int] = result.metrics_dataframe["samples_seen"].tolist()
    return samples


@pytest.mark.parametrize("best", ["a", "c"])
def test_only_the_best_trial_trains_to_the_end(best: str, tmp_path: Path) -> None:
    rates = {key: 1.4 if key == best else 0.9 for key in "abc"}
    results, scheduler = run_here(Walker, rates, tmp_path, prune_below=0)
    assert scheduler.race.winner == best
    reached = seen(results)
    assert reached.pop(best) == BUDGET
    assert all(samples == WINDOW for samples in reached.values())
    assert not results.errors
    assert f"won by {best}" in scheduler.debug_string()


def test_unlikely_trials_are_stopped_early_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "crowd").mkdir()
    crowd = {"crowd": (str(tmp_path / "crowd"), 3)}
    results, scheduler = run(Walker, {"a": 1.2, "b": 1.15, "c": 0.3}, tmp_path, extra=crowd)
    assert seen(results)["c"] < WINDOW
    assert scheduler.race.winner in ("a", "b")
    assert "rank 3 of 3" in scheduler.race.failures()["c"]
    reasons = {key: metrics["stop_reason"] for key, metrics in last(results).items()}
    winner = scheduler.race.winner
    assert reasons.pop(winner) == "budget of 40,000 samples spent"
    assert reasons == scheduler.race.failures()
    restored = tune.Tuner.restore(str(tmp_path / "race"), Walker).get_results()  # from disk
    assert {key: metrics["stop_reason"] for key, metrics in last(restored).items() if key != winner} == reasons
    assert not restored.errors


def test_paused_winner_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    results, scheduler = run(Walker, {"a": 1.4, "b": 0.9}, tmp_path, prune_below=0)
    samples = samples_of(results, "a")
    assert samples == sorted(set(samples))  # no sample is repeated
    assert last(results)["a"]["starts"] <= 2
    assert [d.state for d in scheduler.decisions if d.key == "a"][-1] is State.WON


def test_function_without_checkpoints_is_never_paused(tmp_path: Path) -> None:
    results, scheduler = run_here(walk, {"a": 1.4, "b": 0.9}, tmp_path, prune_below=0)
    assert scheduler.race.winner == "a"
    assert samples_of(results, "a") == list(range(STEP, BUDGET + STEP, STEP))


def test_ray_train_winner_restarts_with_winner_config(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("best", "in_place"), [("a", True), ("b", False)])
def test_waiting_winner_continues_in_place_or_restarts(best: str, in_place: bool, tmp_path: Path) -> None:
    """Both trials wait for the decision; the loser, or a winner that is restarted, is stopped while it waits."""
    decided, asked = tmp_path / "decided", []

    def reset_config(trial: Trial, entries: Mapping[str, Any]) -> bool:
        asked.append((trial.config["candidate"], entries))
        decided.touch()
        return in_place

    extra: dict[str, Any] = {
        "storage": str(tmp_path),
        "run_tag": "start",
        "resume_from": None,
        "workers": 1,
        "decided": str(decided),
    }
    (tmp_path / "crowd").mkdir()
    extra["crowd"] = (str(tmp_path / "crowd"), 2)
    results, scheduler = run(
        walk_like_train,
        {key: 1.4 if key == best else 0.9 for key in "ab"},
        tmp_path,
        extra=extra,
        prune_below=0,
        winner_config={"workers": 3},
        reset_config=reset_config,
    )
    assert scheduler.race.winner == best
    assert asked[0] == (best, {"workers": 3})
    winner = last(results)[best]
    assert (winner["samples_seen"], winner["workers"]) == (BUDGET, 1 if in_place else 3)
    assert winner["starts"] == last(results)["ab".replace(best, "")]["starts"] + (not in_place)
    assert samples_of(results, best) == list(range(STEP, BUDGET + STEP, STEP))


@pytest.mark.parametrize("dies", [False, True])
def test_trials_that_wait_in_place_give_their_resources_back(dies: bool, tmp_path: Path) -> None:
    """When others need them, or when they are lost."""

    class LacksPlace(tune.Callback):
        paused = 0

        def on_step_begin(self, iteration: int, trials: list[Trial], **_: Any) -> None:
            self.paused += any(trial.status == Trial.PAUSED for trial in trials)
            if scheduler.trials_wait_in_place and not dies:
                scheduler.pause_waiting()

    scheduler = LossExtrapolationScheduler(
        "loss", "min", budget=BUDGET, window=WINDOW, prune_below=0, reset_config=lambda trial, entries: True
    )
    extra: dict[str, Any] = {"storage": str(tmp_path), "run_tag": "start", "resume_from": None}
    extra |= {"decided": str(tmp_path / "decided"), "seconds": {"a": 0.02, "b": 0.2}, "dies": {"a": dies}}
    watch = LacksPlace()
    results, _ = run(
        walk_like_train,
        {"a": 1.4, "b": 0.9},
        tmp_path,
        scheduler=scheduler,
        extra=extra,
        run_config={"callbacks": [watch], "failure_config": tune.FailureConfig(max_failures=1)},
    )
    assert watch.paused
    assert scheduler.race.winner == "a"
    assert last(results)["a"]["starts"] == 2
    assert samples_of(results, "a") == list(range(STEP, BUDGET + STEP, STEP))


def test_failed_trials_are_pruned_and_the_others_continue(tmp_path: Path) -> None:
    rates = {"raises": 3.0, "nan": 2.0, "sound": 1.0, "slow": 0.9}
    extra = {"raises_at": {"raises": 2 * STEP}, "nan_at": {"nan": 3 * STEP}}
    results, scheduler = run_here(Walker, rates, tmp_path, extra=extra, prune_below=0)
    reasons = scheduler.race.failures()
    assert "RuntimeError: broken" in reasons["raises"]
    assert "nan" in reasons["nan"]
    assert scheduler.race.winner == "sound"
    assert seen(results)["sound"] == BUDGET
    assert last(results)["nan"]["stop_reason"] == reasons["nan"]


def test_trial_that_tune_retries_stays_in_the_race(tmp_path: Path) -> None:
    """With two candidates, pruning the failed one would end the race at once."""
    extra = {"raises_at": {"a": 4 * STEP}, "flaky": str(tmp_path / "failed")}
    retry = {"failure_config": tune.FailureConfig(max_failures=1)}
    results, scheduler = run_here(Walker, {"a": 1.4, "b": 0.9}, tmp_path, extra=extra, run_config=retry, prune_below=0)
    assert (tmp_path / "failed").exists()
    assert scheduler.race.winner == "a"
    assert seen(results) == {"a": BUDGET, "b": WINDOW}
    assert len(scheduler.race.curve("a")[0]) == BUDGET / STEP  # repeated reports count once


def test_dead_processes_are_restarted_and_fatal_errors_are_not(tmp_path: Path) -> None:
    """Processes are killed before the first report, in the race, twice in a row, and in the winner's training."""
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
    assert samples_of(results, "a") == list(range(STEP, BUDGET + STEP, STEP))  # each sample once
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


def test_experiment_ends_when_all_trials_fail(tmp_path: Path) -> None:
    _, scheduler = run_here(Walker, {"a": 1.0, "b": 1.0}, tmp_path, extra={"nan_at": STEP})
    # When the first trial fails, the second wins, until it fails too.
    assert scheduler.race.over
    assert scheduler.race.winner is None
    assert set(scheduler.race.failures()) == {"a", "b"}
    assert all("nan" in reason for reason in scheduler.race.failures().values())


def test_results_without_the_metric_are_ignored_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"silent_until": {"a": 2 * STEP, "c": 2 * BUDGET}}
    patient = {"prune_below": 0, "min_reports": 1}  # on a busy machine c may report often before b does
    with caplog.at_level(logging.WARNING, "schedulers"):
        results, scheduler = run_here(Walker, {"a": 1.4, "b": 0.9, "c": 0.9}, tmp_path, extra=extra, **patient)
    assert scheduler.race.winner == "a"
    assert seen(results) == {"a": BUDGET, "b": WINDOW, "c": WINDOW}
    assert "without reporting 'loss'" in last(results)["c"]["stop_reason"]
    assert [record.message for record in caplog.records if "ignored" in record.message] != []
    assert sum("ignored" in record.message for record in caplog.records) == 1


def test_missing_metric_is_an_early_error(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="no trial has reported the metric 'los'; did you mean 'loss'") as caught:
        run_here(Walker, {"a": 1.4, "b": 0.9}, tmp_path, metric="los")
    assert "Reported were: loss, samples_seen, score, starts. Set metric to one of them" in str(caught.value)
    restored = tune.Tuner.restore(str(tmp_path / "race"), Walker).get_results()
    assert all(samples < WINDOW / 2 for samples in seen(restored).values())
    results, scheduler = run_here(Walker, {"a": 1.4}, tmp_path / "short", metric="los", extra={"ends_at": STEP})
    assert "did you mean 'loss'? Reported were: loss" in last(results)["a"]["stop_reason"]
    assert scheduler.race.winner is None


def test_metric_of_tune_config_and_a_second_fit(tmp_path: Path) -> None:
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


def test_missing_time_attr_lists_what_is_reported(tmp_path: Path) -> None:
    results, _ = run_here(Walker, {"a": 1.4, "b": 0.9}, tmp_path, time_attr="images")
    for metrics in last(results).values():
        assert "does not report 'images': report it, or set time_attr to one of" in metrics["stop_reason"]
        assert "samples_seen" in metrics["stop_reason"]
        assert metrics["samples_seen"] == STEP


@pytest.mark.parametrize("rates", [{"only": 1.0}, dict.fromkeys("abc", 1.0)], ids=["one", "all equal"])
def test_single_and_equal_candidates_have_one_winner(rates: dict[str, float], tmp_path: Path) -> None:
    results, scheduler = run_here(Walker, rates, tmp_path)
    assert scheduler.race.winner in rates
    assert sorted(seen(results).values())[-1] == BUDGET
    assert sum(samples == BUDGET for samples in seen(results).values()) == 1


def test_finished_trials_stay_in_the_race(tmp_path: Path) -> None:
    results, scheduler = run_here(Walker, {"a": 1.4, "b": 0.9}, tmp_path, extra={"ends_at": 5 * STEP}, prune_below=0)
    assert scheduler.race.winner == "a"
    assert set(seen(results).values()) == {5 * STEP}


FIVE = {"a": 0.8, "b": 0.9, "c": 1.0, "d": 1.5, "e": 0.7}


@pytest.mark.parametrize(
    ("trainable", "limit"),
    [(Walker, "max_concurrent_trials"), (walk_with_checkpoints, "resources")],
    ids=["classes by max_concurrent_trials", "functions by resources"],
)
def test_more_trials_than_slots_run_in_turns(trainable: Any, limit: str, tmp_path: Path) -> None:
    many = {"cpus": 2.0} if limit == "resources" else {"cpus": 0.5, "tune_config": {"max_concurrent_trials": 2}}
    results, scheduler = run_here(trainable, FIVE, tmp_path, prune_below=0, **many)
    assert scheduler.race.winner == "d"
    assert seen(results) == {**dict.fromkeys(FIVE, WINDOW), "d": BUDGET}
    assert not results.errors


def test_no_trial_is_pruned_by_a_forecast_before_all_have_reported(tmp_path: Path) -> None:
    _, scheduler = run_here(
        Walker, {**FIVE, "e": 2.5}, tmp_path, cpus=2.0, rule="forecast", prune_below=0.3, min_reports=4
    )
    first = next(d for d in scheduler.decisions if d.state is State.PRUNED)
    assert scheduler.race.winner == "e"
    assert "probability" in first.reason
    assert all(len(scheduler.race.curve(key)[0]) >= 4 for key in FIVE)


def test_functions_without_checkpoints_keep_their_slots(tmp_path: Path) -> None:
    results, scheduler = run_here(walk, FIVE, tmp_path, cpus=2.0, prune_below=0)
    assert scheduler.race.winner == "d"
    reached = seen(results)
    assert reached["a"] == reached["b"] == BUDGET  # they had to finish before the others could start
    assert reached["e"] < BUDGET


@pytest.mark.parametrize("trainable", [Walker, walk], ids=["class", "function"])
def test_failures_free_slots_for_waiting_trials(trainable: Any, tmp_path: Path) -> None:
    extra = {"raises_at": {"a": STEP, "b": 3 * STEP}}
    limit = {"max_concurrent_trials": 2}
    results, scheduler = run_here(trainable, FIVE, tmp_path, extra=extra, tune_config=limit, prune_below=0)
    assert scheduler.race.winner == "d"
    assert seen(results)["d"] == BUDGET
    assert {"a", "b"} <= set(scheduler.race.failures())


def test_class_without_save_checkpoint_is_never_paused(tmp_path: Path) -> None:
    never = {"checkpoint_config": tune.CheckpointConfig(checkpoint_at_end=False)}
    results, scheduler = run_here(Forgetful, {"a": 1.4, "b": 0.9}, tmp_path, run_config=never, prune_below=0)
    assert scheduler.race.winner == "a"
    assert seen(results)["a"] == BUDGET


def test_rejects_missing_metric_and_duplicate_candidates(tmp_path: Path) -> None:
    scheduler = LossExtrapolationScheduler(budget=BUDGET, window=WINDOW)
    with pytest.raises(ValueError, match="no metric to compare trials by"):
        run_here(Walker, {"a": 1.0}, tmp_path, scheduler=scheduler)
    with pytest.raises(ValueError, match="two trials have candidate 'a'"):
        run_here(Walker, {"a": 1.0}, tmp_path, tune_config={"num_samples": 2})
    with pytest.raises((ValueError, TuneError), match="never ends"):
        run_here(Walker, {"a": 1.0}, tmp_path, tune_config={"num_samples": -1})


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"forecaster": "oracle"}, "oracle"), ({"mode": "most"}, "most"), ({"window": BUDGET * 2}, "80,000")],
)
def test_rejects_unknown_settings(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LossExtrapolationScheduler(**{"budget": BUDGET, "window": WINDOW, **settings})
