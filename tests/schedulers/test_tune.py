"""The scheduler on a real local Ray, with trainables that walk down known curves."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune import ResultGrid

from schedulers import LossExtrapolationScheduler, State
from tests.schedulers.curves import shared_curve

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

BUDGET, WINDOW, STEP = 40_000, 10_000, 1_000


class Walker(tune.Trainable):
    """A class trainable: STEP samples an iteration, down the shared curve at the configured rate."""

    def setup(self, config: dict[str, Any]) -> None:
        self.samples = 0
        self.starts = 1
        if crowd := config.get("crowd"):  # all start together, however slowly the machine starts processes
            folder, size = Path(crowd[0]), crowd[1]
            (folder / config["candidate"]).touch()
            while len(list(folder.iterdir())) < size:
                time.sleep(0.01)

    def step(self) -> dict[str, Any]:
        time.sleep(0.02)
        self.samples += STEP
        if self.config.get("raises_at") == self.samples:
            raise RuntimeError("out of luck")
        loss = float(shared_curve(np.array(self.config["rate"] * self.samples)))
        loss = math.nan if self.config.get("nan_at") == self.samples else loss
        return {"loss": loss, "score": -loss, "samples_seen": self.samples, "starts": self.starts}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "samples").write_text(str(self.samples))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.samples = int((Path(checkpoint_dir) / "samples").read_text())
        self.starts += 1


def walk(config: dict[str, Any]) -> None:
    """The same as a plain function without checkpoints."""
    for samples in range(STEP, BUDGET + STEP, STEP):
        time.sleep(0.02)
        loss = float(shared_curve(np.array(config["rate"] * samples)))
        tune.report({"loss": loss, "samples_seen": samples})


def run(
    trainable: Any, rates: dict[str, float], storage: Path, *, extra: Any = None, **settings: Any
) -> tuple[ResultGrid, LossExtrapolationScheduler]:
    defaults: dict[str, Any] = {"metric": "loss", "mode": "min", "budget": BUDGET, "window": WINDOW}
    scheduler = LossExtrapolationScheduler(**{**defaults, **settings})
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 0.5}),
        param_space={
            "candidate": tune.grid_search(list(rates)),
            "rate": tune.sample_from(lambda spec: rates[spec.config.candidate]),
            **(extra or {}),
        },
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(name="race", storage_path=str(storage), verbose=0),
    )
    return tuner.fit(), scheduler


def seen(results: ResultGrid) -> dict[str, int]:
    return {
        result.config["candidate"]: (result.metrics or {}).get("samples_seen", 0) for result in results if result.config
    }


@pytest.mark.parametrize("best", ["a", "c"])
def test_the_winner_changes_with_the_curves_and_alone_runs_to_the_end(best: str, tmp_path: Path) -> None:
    rates = {key: 1.4 if key == best else 0.9 for key in "abc"}
    results, scheduler = run(Walker, rates, tmp_path, drop_below=0)
    assert scheduler.race.winner == best
    reached = seen(results)
    assert reached.pop(best) == BUDGET
    assert all(samples == WINDOW for samples in reached.values())
    assert not results.errors


def test_the_hopeless_are_stopped_before_the_window_is_spent(tmp_path: Path) -> None:
    (tmp_path / "crowd").mkdir()
    crowd = {"crowd": (str(tmp_path / "crowd"), 3)}
    results, scheduler = run(Walker, {"a": 1.2, "b": 1.15, "c": 0.3}, tmp_path, extra=crowd)
    assert seen(results)["c"] < WINDOW
    assert scheduler.race.winner in ("a", "b")
    assert "chance" in scheduler.race.failures()["c"]


def test_a_paused_winner_is_taken_up_from_its_checkpoint_once(tmp_path: Path) -> None:
    results, scheduler = run(Walker, {"a": 1.4, "b": 0.9}, tmp_path, drop_below=0)
    winner = next(result for result in results if result.config and result.config["candidate"] == "a")
    assert winner.metrics is not None
    frame = winner.metrics_dataframe
    assert frame is not None
    samples = frame["samples_seen"].tolist()
    assert samples == sorted(set(samples))  # no sample twice
    assert winner.metrics["starts"] <= 2
    assert [d.state for d in scheduler.decisions if d.key == "a"][-1] is State.WON


def test_a_function_without_checkpoints_is_never_paused(tmp_path: Path) -> None:
    results, scheduler = run(walk, {"a": 1.4, "b": 0.9}, tmp_path, drop_below=0)
    assert scheduler.race.winner == "a"
    winner = next(result for result in results if result.config and result.config["candidate"] == "a")
    assert winner.metrics_dataframe is not None
    samples = winner.metrics_dataframe["samples_seen"].tolist()
    assert samples == list(range(STEP, BUDGET + STEP, STEP))


def test_candidates_that_raise_or_lose_their_loss_are_dropped_and_the_race_goes_on(tmp_path: Path) -> None:
    rates = {"raises": 3.0, "nan": 2.0, "sound": 1.0, "slow": 0.9}
    extra = {
        "raises_at": tune.sample_from(lambda spec: 2 * STEP if spec.config.candidate == "raises" else None),
        "nan_at": tune.sample_from(lambda spec: 3 * STEP if spec.config.candidate == "nan" else None),
    }
    results, scheduler = run(Walker, rates, tmp_path, extra=extra, drop_below=0)
    reasons = scheduler.race.failures()
    assert "RuntimeError: out of luck" in reasons["raises"]
    assert "nan" in reasons["nan"]
    assert scheduler.race.winner == "sound"
    assert seen(results)["sound"] == BUDGET


def test_without_a_survivor_the_experiment_ends_and_every_reason_is_known(tmp_path: Path) -> None:
    extra = {"nan_at": STEP}
    _, scheduler = run(Walker, {"a": 1.0, "b": 1.0}, tmp_path, extra=extra)
    # The first to fail leaves the second alone, which has won for a moment before it fails too.
    assert scheduler.race.over
    assert scheduler.race.winner is None
    assert set(scheduler.race.failures()) == {"a", "b"}
    assert all("nan" in reason for reason in scheduler.race.failures().values())


def test_mode_max_and_the_metric_of_tune_config(tmp_path: Path) -> None:
    scheduler = LossExtrapolationScheduler(budget=BUDGET, window=WINDOW, drop_below=0)
    tuner = tune.Tuner(
        tune.with_resources(Walker, {"CPU": 0.5}),
        param_space={"rate": tune.grid_search([0.9, 1.4])},
        tune_config=tune.TuneConfig(scheduler=scheduler, metric="score", mode="max"),
        run_config=tune.RunConfig(name="max", storage_path=str(tmp_path), verbose=0),
    )
    best = tuner.fit().get_best_result(scope="last")
    assert best.config is not None
    assert best.config["rate"] == 1.4
    assert best.metrics is not None
    assert best.metrics["samples_seen"] == BUDGET


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"predictor": "oracle"}, "oracle"), ({"mode": "most"}, "most"), ({"window": BUDGET * 2}, "80,000")],
)
def test_refuses_what_it_does_not_know_and_names_it(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LossExtrapolationScheduler(**{"budget": BUDGET, "window": WINDOW, **settings})
