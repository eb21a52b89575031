"""Failures of trials, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from schedulers import LossExtrapolationScheduler
from schedulers.tune.trials import RESTARTED, NoRetryError, disk_failure, last_error, may_be_retried


class PickyError(Exception):
    """Can be pickled but not unpickled, because its arguments differ from those of its base."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{number} {text}")


@pytest.fixture
def trial(tmp_path: Path) -> Any:
    return SimpleNamespace(pickled_error_file=str(tmp_path / "error.pkl"))


class TestLastError:
    def test_reads_the_error_file(self, trial: Any) -> None:
        Path(trial.pickled_error_file).write_bytes(cloudpickle.dumps(NoRetryError("broken")))
        assert str(last_error(trial)) == "broken"
        assert not may_be_retried(trial)

    def test_none_without_a_file(self, trial: Any) -> None:
        assert last_error(trial) is None

    @pytest.mark.parametrize("content", [cloudpickle.dumps(PickyError(1, "a")), b"", b"\x80\x05torn"])
    def test_unreadable_errors_are_ignored(self, trial: Any, content: bytes) -> None:
        Path(trial.pickled_error_file).write_bytes(content)
        assert last_error(trial) is None
        assert may_be_retried(trial)
        assert disk_failure(trial) is None


def test_restart_counts_once_when_the_last_result_is_repeated() -> None:
    scheduler = LossExtrapolationScheduler("loss", "min", budget=1_000, window=500)
    for key in "ab":
        scheduler.series.enter(key)
    trial = SimpleNamespace(trial_id="1", config={"candidate": "a"}, run_metadata=SimpleNamespace(num_failures=1))
    result = {"samples_seen": 100, "loss": 1.0, "time_total_s": 1.0, "done": False, RESTARTED: "worker 0 died"}
    controller: Any = None  # no trial is stopped or paused
    scheduler.on_trial_result(controller, trial, result)
    scheduler.on_trial_result(controller, trial, {**result, "done": True})  # Tune does so when a function has returned
    assert [restart.reason for restart in scheduler.series.restarts] == ["worker 0 died"]
    assert trial.run_metadata.num_failures == 0
