"""Killed and restored drivers take the same decisions as uninterrupted ones."""

from __future__ import annotations

import json
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.schedulers.tune import killed_driver

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(600)]

#: Drivers are forked from a process that has imported Ray without starting it, so they start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([killed_driver.__name__])


def drive(
    storage: Path, kill_at: str = "never", *, prune_below: float = 0.0, save_every: float = 0.0, processes: bool = False
) -> dict[str, Any]:
    """Starts or restores the experiment in a new process, which is killed at ``kill_at``.

    With ``processes`` each trial has its own process; else they run in the driver's.
    """
    address = ray.get_runtime_context().gcs_address
    environment = {"KILL_AT": kill_at, "TUNE_GLOBAL_CHECKPOINT_S": str(save_every)}
    driver = PROCESSES.Process(target=killed_driver.main, args=(address, storage, environment, prune_below, processes))
    driver.start()
    driver.join(timeout=240)
    driver.kill()
    said = (storage / "errors.txt").read_text()[-3000:]
    if kill_at != "never":
        assert driver.exitcode == -signal.SIGKILL, said
        return {}
    assert driver.exitcode == 0, said
    decided: dict[str, Any] = json.loads((storage / "decided.json").read_text())
    return decided


@pytest.fixture(scope="module")
def uninterrupted(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The decisions of an uninterrupted driver."""
    decided = drive(tmp_path_factory.mktemp("whole"))
    assert decided["winners"] == ["a", "b"]
    assert decided["samples"] == {"a": 22_000, "b": 40_000, "c": 22_000}
    return decided


def comparable(decided: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in decided.items() if name != "starts_per_trial"}


@pytest.mark.parametrize(
    "moments",
    [
        ["racing", "paused", "winner's training", "forking", "racing again", "winner of second race"],
        ["saving the fork"],
    ],
    ids=" then ".join,
)
def test_same_decisions_when_killed_at_any_moment(
    moments: list[str], uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    for moment in moments:
        drive(tmp_path, moment)
    assert comparable(drive(tmp_path)) == comparable(uninterrupted)


def test_same_decisions_when_snapshots_are_old(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    for moment in ("paused", "racing again"):
        drive(tmp_path, moment, save_every=1.5, processes=True)
    assert comparable(drive(tmp_path, processes=True)) == comparable(uninterrupted)


def test_early_prunes_are_restored(tmp_path: Path) -> None:
    """The order of reports determines when a candidate is pruned, but not the winner."""
    drive(tmp_path, "winner's training", prune_below=0.05)
    drive(tmp_path, "racing again", prune_below=0.05)
    decided = drive(tmp_path, prune_below=0.05)
    assert decided["winners"] == ["a", "b"]
    assert decided["samples"]["b"] == 40_000
    assert set(decided["stop_reasons"]) == {"a", "b", "c"}
    assert all(decided["stop_reasons"].values())
