"""Repeated reports of a resumed candidate are written and shown once."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from adaptive_ray.config.loading import parse_config
from adaptive_ray.config.plan import Plan
from adaptive_ray.experiment.trials import Trials
from adaptive_ray.experiment.tune_callback import RunCallback
from adaptive_ray.ray_cluster.layout import Layout, Workers
from adaptive_ray.report.terminal import Progress
from adaptive_ray.run_directory.directory import RunDirectory
from adaptive_ray.run_directory.history import History
from trainables.report import TrainingReport

CONFIG = parse_config(
    {
        "dataset": {"name": "mnist5k"},
        "candidates": [64, 128],
        "budget": {"samples": 10_000},
        "race": {"window": {"samples": 2_000}},
    }
)


class Told:
    """A tracker that records the samples of reports."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def report(self, candidate: str, report: TrainingReport) -> None:
        self.samples.append(report.samples_seen)


class Session:
    """The callback of a process that starts or resumes a run."""

    def __init__(self, directory: RunDirectory) -> None:
        plan = Plan.of(CONFIG, 5_000)
        layout = Layout(Workers(1, 1, 0), Workers(1, 1, 0), 2)
        history = History(directory.path / "events.jsonl")
        self._trials = Trials(CONFIG, plan, {}, layout, directory, history)
        self.tracker, self.screen = Told(), io.StringIO()
        progress = Progress(Console(file=self.screen))
        progress.plan = plan
        self._callback = RunCallback(self._trials.scheduler, directory, progress, self.tracker)

    def report(self, samples: int, checkpoint: str) -> None:
        result = {"samples_seen": samples, "reference_loss": 4.0, "batch_size": 64, "checkpoint_path": checkpoint}
        self._trials.scheduler.series.report("64", samples, 4.0, samples / 1_000)
        self._callback.on_trial_result(0, [], SimpleNamespace(config={"candidate": "64"}), result)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(CONFIG.model_copy(update={"runs_dir": tmp_path}), "run")


def test_a_report_is_tracked_and_shown_once_however_often_the_run_is_resumed(directory: RunDirectory) -> None:
    first = Session(directory)
    for samples in (200, 400, 600):
        first.report(samples, "first")
    assert first.tracker.samples == [200, 400, 600]

    second = Session(directory)  # from an older checkpoint, and killed before it has caught up
    second.report(400, "second")

    third = Session(directory)
    for samples in (600, 800):
        third.report(samples, "third")
    assert second.tracker.samples == []
    assert third.tracker.samples == [800]
    assert third.screen.getvalue().count("samples, reference loss") == 1
    assert [report.samples_seen for report in directory.reports_of("64")] == [200, 400, 600, 800]
    assert Path(str(directory.reports()["64"][-2].checkpoint_path)).name == "third"  # every report names a checkpoint
