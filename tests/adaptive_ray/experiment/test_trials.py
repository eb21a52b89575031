"""The state of a resumed run depends only on its history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptive_ray.config.loading import parse_config
from adaptive_ray.config.plan import Plan
from adaptive_ray.errors import NoSurvivorError, UserError, WinnerFailedError
from adaptive_ray.experiment.trials import Trials
from adaptive_ray.ray_cluster.layout import Layout, Workers
from adaptive_ray.run_directory.directory import RunDirectory
from adaptive_ray.run_directory.history import History
from schedulers import State
from tests.schedulers.curves import shared_curve
from trainables.report import TrainingReport

BUDGET, WINDOW, EVERY = 10_000, 2_000, 200
CONFIG = parse_config(
    {
        "dataset": {"name": "mnist5k"},
        "candidates": [64, 128, 256],
        "budget": {"samples": BUDGET},
        "race": {"window": {"samples": WINDOW}, "evaluations": 10, "prune_below": 0},
    }
)
LAYOUT = Layout(Workers(1, 1, 0), Workers(2, 1, 0), 3)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(CONFIG.model_copy(update={"runs_dir": tmp_path}), "run")


def session(directory: RunDirectory, *, retry_failed: bool = False) -> Trials:
    """The trials of a process that starts or resumes a run."""
    history = History(directory.path / "events.jsonl")
    trials = Trials(CONFIG, Plan.of(CONFIG, 5_000), {}, LAYOUT, directory, history)
    if retry_failed:
        trials.retry_failed()
    return trials


def report(trials: Trials, directory: RunDirectory, key: str, samples: int, rate: float = 1.0) -> None:
    """Sends a report to the scheduler and the callback."""
    loss = float(shared_curve(np.array(rate * samples)))
    trials.scheduler.series.report(key, samples, loss, samples / 1_000)
    at = {"samples_seen": samples, "seconds": samples / 1_000, "batch_size": int(key)}
    directory.append_report(key, TrainingReport(**at, reference_loss=loss, checkpoint_path="x"))


def raced(directory: RunDirectory) -> Trials:
    """A session in which 64 fails, 128 wins and reports once more."""
    trials = session(directory)
    report(trials, directory, "64", EVERY)
    trials.scheduler.series.fail("64", "failed: CudaError")
    for samples in range(EVERY, WINDOW + EVERY, EVERY):
        report(trials, directory, "128", samples, 1.3)
        report(trials, directory, "256", samples, 0.9)
    report(trials, directory, "128", WINDOW + EVERY, 1.3)
    return trials


def standing(trials: Trials) -> dict[Any, Any]:
    return {decision.key: (decision.state, decision.reason) for decision in trials.scheduler.race.standings()}


def test_a_resumed_run_has_the_same_state(directory: RunDirectory) -> None:
    before = raced(directory)
    (directory.path / "decisions.jsonl").write_text('{"candidate": "64", "sta')  # killed before it was written
    after = session(directory)
    assert standing(after) == standing(before)
    assert after.winner().key == "128"
    assert after.scheduler.race.state("64") is State.PRUNED  # neither revived ...
    assert after.scheduler.race.state("256") is State.PRUNED  # ... nor racing again
    assert repr(after.scheduler.decisions) == repr(before.scheduler.decisions)
    written = [(entry["candidate"], entry["state"]) for entry in directory.decisions()]
    assert written == [(decision.key, decision.state) for decision in before.scheduler.decisions]


def test_a_failed_winner_is_reported_and_wins_again_when_retried(
    directory: RunDirectory,
) -> None:
    raced(directory).scheduler.series.fail("128", "failed: worker 0: process 7 (RayTrainWorker) died")
    with pytest.raises(
        WinnerFailedError, match="winner, batch size 128, stopped after 2,200 of 10,000 samples"
    ) as caught:
        session(directory).winner()
    assert "(RayTrainWorker) died" in str(caught.value)
    assert f"--resume {directory.path} --retry-failed" in str(caught.value)
    with pytest.raises(WinnerFailedError):
        session(directory).winner()  # a plain resume changes nothing
    assert session(directory, retry_failed=True).winner().key == "128"
    again = session(directory)
    assert again.winner().key == "128"
    assert {entry["candidate"]: entry["state"] for entry in directory.decisions()} == {
        "64": "pruned", "128": "won", "256": "pruned",
    }  # fmt: skip
    assert again.scheduler.race.state("64") is State.PRUNED  # the race was decided without it


def test_if_all_candidates_failed_they_race_again_when_retried(directory: RunDirectory) -> None:
    assert not directory.started
    trials = session(directory)
    assert directory.started  # from here on, its settings may not change
    for key in ("64", "128", "256"):
        trials.scheduler.series.fail(key, "failed: OSError: no space left")
    with pytest.raises(NoSurvivorError, match=r"no candidate survived: batch size 64: failed: OSError.*--retry-failed"):
        trials.winner()
    again = session(directory, retry_failed=True)
    assert {state for state, _ in standing(again).values()} == {State.RACING}


def test_reports_without_a_history_are_not_resumed(directory: RunDirectory) -> None:
    raced(directory)
    (directory.path / "events.jsonl").unlink()
    with pytest.raises(UserError, match=r"no events\.jsonl"):
        session(directory)
