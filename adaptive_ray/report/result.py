"""Prints the result of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.report.accuracies import REPRESENTATIONS, accuracy_rows, missing, reference_loss
from adaptive_ray.report.decisions import decision_table, format_restart, last_decisions
from adaptive_ray.report.terminal import print_lines
from adaptive_ray.run_directory.directory import RunDirectory
from schedulers import Candidate


def print_result(
    console: Console, directory: RunDirectory, result: Mapping[str, Any], settings: ExperimentConfig
) -> None:
    """Prints decisions, the chosen batch size, accuracies, costs, and where the results are."""
    console.print()
    console.print(decision_table(last_decisions(directory.decisions())))
    chosen = Candidate(result["chosen_batch_size"], result["chosen_accumulation"])
    console.print(f"\n[bold green]chosen batch size: {chosen.key}[/]\n", highlight=False)
    columns = (Column(title, justify="right") for title in REPRESENTATIONS.values())
    table = Table("held-out accuracy", *columns, box=None, padding=(0, 3, 0, 0))
    for row in accuracy_rows(result):
        table.add_row(*row)
    console.print(table)
    console.print(f"\n{reference_loss(result)}", highlight=False)
    print_lines(console, (f"- {line}" for line in missing(result)), "yellow")
    console.print(
        f"exploration: {100 * result['explore_fraction']:.0f} % of the budget "
        f"({result['samples_explored']:,} of {result['budget']:,} samples) · total time: {result['seconds']:.0f} s",
        highlight=False,
    )
    print_lines(console, (f"batch size {format_restart(**restart)}" for restart in result.get("restarts", [])))
    lines: dict[str, Any] = {"results": directory.path, "report": directory.path / "report.html"}
    if settings.tracking.enabled and settings.tracking.uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        lines["MLflow"] = f"mlflow ui --backend-store-uri sqlite:///{directory.path.parent / 'mlflow.db'}"
    print_lines(console, (f"{title}: {text}" for title, text in lines.items()))
