"""``adaptive-ray plan`` converts between minutes and epochs with the throughputs of earlier runs."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.loading import load_config
from adaptive_ray.experiment.experiment import Experiment
from adaptive_ray.experiment.plan_command import print_plan
from adaptive_ray.ray_cluster.layout import Layout
from adaptive_ray.ray_cluster.nodes import this_machine
from adaptive_ray.run_directory.directory import RunDirectory

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def configured(runs: Path, *settings: str) -> ExperimentConfig:
    fixed = ("candidates=[64, 256]", "trial.cpus_per_worker=1", "race.max_concurrent=2")
    return load_config(QUICKSTART, [*fixed, *settings], runs_dir=runs)


def planned(config: ExperimentConfig) -> tuple[str, dict[str, list[str]]]:
    """Returns what is printed, and the rows of the table by batch size."""
    console = Console(file=io.StringIO(), width=160)
    print_plan(console, Experiment(config))
    said: str = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.replace("│", " ").split() for line in said.splitlines()]
    return said, {row[0]: row for row in rows if row[:1] in (["64"], ["256"])}


def measured(config: ExperimentConfig, name: str, throughput: float, workers: int = 1) -> Layout:
    """Writes the files of an earlier run that was killed, with the layout that it would have here."""
    directory = RunDirectory.create(config, name)
    layout = Layout.of(config, [this_machine()])
    winner = dataclasses.replace(layout.winner, count=workers)
    directory.write_json("layout.json", dataclasses.asdict(dataclasses.replace(layout, winner=winner)))
    line = json.dumps({"event": "measure", "candidate": "64", "throughput": throughput, "elapsed": 1.0})
    (directory.path / "events.jsonl").write_text(line + '\n{"event": "rep')
    return layout


def test_minutes_and_epochs_with_the_throughputs_of_earlier_runs(tmp_path: Path) -> None:
    epochs, minutes = configured(tmp_path), configured(tmp_path, "budget.minutes=20")
    said, rows = planned(minutes)
    assert rows["64"][1:3] == ["measured", "first"]
    assert "throughputs: measured when the candidates start; none from earlier runs" in said
    layout = measured(epochs, "mine", 1_000.0)
    measured(configured(tmp_path, "simclr.encoder.width=32"), "other-network", 5.0)
    measured(epochs, "other-workers", 6.0, workers=7)
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "events.jsonl").write_text("{")

    said, rows = planned(epochs)
    assert "throughputs: as measured in mine" in said
    assert rows["64"][-3:] == ["1,000", "26", "1.62"]  # 26 epochs of 3,744 images
    said, rows = planned(minutes)
    left = 20 - (layout.slowdown - 1) * 20 / 13  # the window is a thirteenth
    assert rows["64"][-3:] == ["1,000", f"{left * 60_000 / 3_744:.3g}", f"{left:.3g}"]
    assert rows["64"][2] == f"{math.ceil(left * 60_000 / 64):,}"
    assert rows["256"][1:3] == ["measured", "first"]
    assert "budget: 20 minutes of training, including the race" in said
