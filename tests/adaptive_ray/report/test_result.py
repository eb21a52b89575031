"""What the command line prints about a finished run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from adaptive_ray.report.result import print_result
from tests.adaptive_ray.report.test_page import finished


def test_decisions_accuracies_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    directory, out = finished(tmp_path, sizes=(32, 64)), io.StringIO()
    result = {**directory.read_json("result.json"), "unavailable": {"weights.png": "no space left"}}
    restarts = [{"candidate": "64", "samples": 1024.0, "reason": "worker 0 died"}]
    print_result(Console(file=out, width=160), directory, {**result, "restarts": restarts}, directory.config())
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    for line in (
        "chosen batch size: 64",
        "linear classifier 91.2 % 50.0 % 70.0 %",
        "reference loss: 3.600 (first report: 4.600)",
        "- weights.png: no space left",
        "exploration: 37 % of the budget (6,000 of 16,384 samples) · total time: 123 s",
        "batch size 64 restarted after 1,024 samples: worker 0 died",
        f"report: {directory.path / 'report.html'}",
        f"MLflow: mlflow ui --backend-store-uri sqlite:///{tmp_path / 'mlflow.db'}",
    ):
        assert line in lines, line
