"""Writes the results of a finished run and logs its files to MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptive_ray.run_directory.directory import RunDirectory

if TYPE_CHECKING:
    from adaptive_ray.experiment.mlflow_tracking import Tracker

#: Files that are logged to MLflow as artifacts, if they exist.
ARTIFACTS = (
    "result.json",
    "config.yaml",
    "events.jsonl",
    "decisions.jsonl",
    "swaps.jsonl",
    "curves.json",
    "report.html",
    "encoder.safetensors",
    "encoder.json",
    "clusters.json",
    "clusters.html",
)


def write_results(directory: RunDirectory, result: dict[str, Any], tracker: Tracker | None) -> None:
    """Writes ``curves.json``, ``result.json`` and ``report.html``, and finishes the MLflow runs."""
    # matplotlib and scikit-learn: not before the encoder is saved
    from adaptive_ray.experiment.evaluate import reason
    from adaptive_ray.report.page import write_report

    directory.write_json("curves.json", directory.curves())
    directory.write_json("result.json", result)
    try:
        write_report(directory)
    except Exception as error:  # the results are written; `adaptive-ray report` can retry
        result["unavailable"]["report.html"] = reason(error)
        directory.write_json("result.json", result)
    if tracker is not None:
        winner = result["winner"]
        tracker.finished(winner, result, directory.reports_of(winner))
        tracker.artifacts(directory, [name for name in ARTIFACTS if (directory.path / name).exists()])
