"""Drivers that are killed and restored decide what the others decide."""

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

#: Drivers are forked from a process that has Ray's modules in memory and no Ray: each starts at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([killed_driver.__name__])


def drive(
    storage: Path, kill_at: str = "never", *, prune_below: float = 0.0, save_every: float = 0.0, processes: bool = False
) -> dict[str, Any]:
    """Starts or restores the experiment in a process of its own, which must end as ``kill_at`` says.

    With ``processes`` its trials have processes too; else they live, and are killed, in the driver's.
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
    """What is decided without any kill."""
    decided = drive(tmp_path_factory.mktemp("whole"))
    assert decided["winners"] == ["a", "b"]
    assert decided["samples"] == {"a": 22_000, "b": 40_000, "c": 22_000}
    return decided


def comparable(decided: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in decided.items() if name != "starts_per_trial"}


@pytest.mark.parametrize(
    "moments",
    [
        ["racing", "paused", "stretching", "forking", "racing again", "stretching again"],
        ["saving the fork"],
    ],
    ids=" then ".join,
)
def test_killed_at_any_moment_it_decides_the_same(
    moments: list[str], uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    for moment in moments:
        drive(tmp_path, moment)
    assert comparable(drive(tmp_path)) == comparable(uninterrupted)


def test_what_was_saved_lags_behind_and_it_decides_the_same(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    for moment in ("paused", "racing again"):
        drive(tmp_path, moment, save_every=1.5, processes=True)
    assert comparable(drive(tmp_path, processes=True)) == comparable(uninterrupted)


def test_early_prunes_are_remembered(tmp_path: Path) -> None:
    """When a candidate is pruned depends on who reports first; who wins does not."""
    drive(tmp_path, "stretching", prune_below=0.05)
    drive(tmp_path, "racing again", prune_below=0.05)
    decided = drive(tmp_path, prune_below=0.05)
    assert decided["winners"] == ["a", "b"]
    assert decided["samples"]["b"] == 40_000
    assert set(decided["stop_reasons"]) == {"a", "b", "c"}
    assert all(decided["stop_reasons"].values())
