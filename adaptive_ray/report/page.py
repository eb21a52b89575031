"""Builds the report of a run: one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path

from adaptive_ray.config.loading import dump_config
from adaptive_ray.report import curves as plots
from adaptive_ray.report import methods as method_plots
from adaptive_ray.report.accuracies import ACCURACIES, REPRESENTATIONS, accuracy_rows, missing, percent, reference_loss
from adaptive_ray.report.decisions import decision_rows, last_decisions
from adaptive_ray.report.html import render
from adaptive_ray.report.swaps import swap_picture
from adaptive_ray.run_directory.atomic_write import write_whole
from adaptive_ray.run_directory.directory import RunDirectory
from schedulers import Candidate


def write_report(directory: RunDirectory) -> Path:
    """Writes ``report.html`` from the files of a finished run. Raises ``UserError`` if the run is not finished."""
    result, curves = directory.read_json("result.json"), directory.read_json("curves.json")
    config, decisions = directory.config(), directory.decisions()
    winner, swaps = result["winner"], directory.swaps()
    neighbours, weights = directory.path / "neighbours.png", directory.path / "weights.png"
    page = render(
        "report.html.j2",
        name=directory.name,
        result=result,
        chosen=Candidate(result["chosen_batch_size"], result["chosen_accumulation"]).key,
        dataset=config.dataset.name,
        loss_curves=plots.loss_curves(curves, decisions, winner),
        batch_sizes=plots.batch_sizes(curves, decisions, winner),
        swaps=swap_picture(directory.reports_of(winner), swaps) if swaps else "",
        information=method_plots.information(curves[winner]) if config.accumulation is not None else "",
        weights=weights.read_bytes() if weights.is_file() else b"",
        weight_settings=config.sample_weights,
        probe=percent(result["probe_accuracy"]),
        knn=percent(result["knn_accuracy"]),
        representations=list(REPRESENTATIONS.values()),
        accuracy_rows=list(accuracy_rows(result)),
        reference_loss=reference_loss(result),
        missing=list(missing(result)),
        accuracies=plots.accuracies(result) if any(result[name] is not None for name in ACCURACIES) else "",
        online_accuracy=plots.online_accuracy(curves, winner),
        neighbours=neighbours.read_bytes() if neighbours.is_file() else b"",
        rows=decision_rows(last_decisions(decisions)),
        config=dump_config(config),
    )
    file = directory.path / "report.html"
    write_whole(file, page)
    return file
