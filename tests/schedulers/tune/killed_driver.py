"""A driver that kills itself in the middle of an experiment; restarted, it restores it. See test_restore.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from schedulers import LossExtrapolationScheduler, State
from tests.schedulers.tune.in_process import trials_in_this_process
from tests.schedulers.tune.walkers import Walker, last, run

RATES = {"a": 1.4, "b": 0.9, "c": 0.8}
FORK = 16_000
TURN = {"turn": FORK, "later": {"a": 0.7, "b": 1.6, "c": 0.8}}


class Killer(tune.Callback):
    """Kills its process at the moment named by the environment variable KILL_AT."""

    def __init__(self, scheduler: LossExtrapolationScheduler, experiment: Path) -> None:
        self.scheduler, self.experiment = scheduler, experiment

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        series = self.scheduler.series
        race, states = series.race, [series.state(key) for key in series.race.keys]
        farthest = max((max(race.curve(key)[0], default=0.0) for key in race.keys), default=0.0)
        moments = {
            "never": False,
            "racing": len(series.races) == 1 and farthest >= 4_000,
            "paused": State.WAITING in states and any(trial.status == Trial.PAUSED for trial in trials),
            "winner's training": race.winner is not None and len(series.races) == 1 and farthest >= 13_000,
            "saving the fork": bool(series.unforked) and any(trial.is_saving for trial in trials),
            "forking": bool(series.unforked) and not any(trial.is_saving for trial in trials),
            "racing again": len(series.races) == 2 and not series.unforked,
            "winner of second race": len(series.races) == 2 and race.winner is not None and farthest >= 30_000,
        }
        if moments[os.environ["KILL_AT"]]:
            wait_for_copies(self.experiment)
            os.kill(os.getpid(), signal.SIGKILL)


def wait_for_copies(experiment: Path) -> None:
    """Waits until Tune's thread has written its state: a partial file cannot be restored."""
    before: dict[str, int] = {}
    while True:
        time.sleep(0.5)
        now = {file.name: file.stat().st_mtime_ns for file in experiment.iterdir() if file.is_file()}
        if now == before and all(map(is_whole, experiment.glob("experiment_state-*.json"))):
            return
        before = now


def is_whole(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except json.JSONDecodeError:
        return False
    return True


def main(address: str, storage: Path, environment: dict[str, str], prune_below: float, processes: bool) -> None:
    """Starts or restores the experiment, and writes its outcome to ``decided.json``."""
    with (storage / "errors.txt").open("w") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    with nullcontext() if processes else trials_in_this_process():
        decided = decide(storage, prune_below)
    (storage / "decided.json").write_text(json.dumps(decided))


def decide(storage: Path, prune_below: float) -> dict[str, Any]:
    """Returns the outcome of the experiment."""
    if (storage / "race").exists():
        tuner = tune.Tuner.restore(str(storage / "race"), tune.with_resources(Walker, {"CPU": 0.5}))
        scheduler = tuner._local_tuner._tune_config.scheduler
        results = tuner.fit()
    else:
        scheduler = LossExtrapolationScheduler(
            "loss",
            "min",
            budget=40_000,
            window=10_000,
            prune_below=prune_below,
            rerace={"at": [0.4]},
            rerace_window=6_000,
        )
        callbacks = {"callbacks": [scheduler.callback, Killer(scheduler, storage / "race")]}
        results, _ = run(Walker, RATES, storage, scheduler=scheduler, extra=TURN, run_config=callbacks)
    series = scheduler.series
    return {
        "winners": [race.winner for race in series.races],
        "starts": [race.start for race in series.races],
        "reasons": [{key: race.reason(key) for key in race.keys} for race in series.races],
        "curves": [{key: race.curve(key) for key in sorted(race.keys)} for race in series.races],
        "stop_reasons": {key: metrics["stop_reason"] for key, metrics in sorted(last(results).items())},
        "samples": {key: metrics["samples_seen"] for key, metrics in sorted(last(results).items())},
        "lineage": {key: metrics["lineage"] for key, metrics in sorted(last(results).items())},
        "starts_per_trial": {key: metrics["starts"] for key, metrics in sorted(last(results).items())},
        "errors": len(results.errors),
    }
