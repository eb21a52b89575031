"""Plots a replay: cost and regret of policies, quality of forecasts, and recorded curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from adaptive_ray.replay.recordings import Axis, Sweep
from adaptive_ray.replay.replay import FRACTIONS, Row, budgeted, score, seed_noise
from adaptive_ray.report.curves import STYLE, colours

#: Maximum number of sweeps that are drawn.
_MAX_SWEEPS = 12


def write_plots(
    directory: Path, rows: Sequence[Row], forecasts: Sequence[Row], sweeps: Sequence[Sweep], axis: Axis
) -> list[Path]:
    """Writes ``policies.png``, ``forecasts.png`` and ``curves.png``, and returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = {
        "policies": _policies(rows, sweeps, axis),
        "forecasts": _forecasts(forecasts),
        "curves": _curves(sweeps, axis),
    }
    files = []
    for name, figure in figures.items():
        files.append(directory / f"{name}.png")
        figure.savefig(files[-1], dpi=110)
    return files


def _policies(rows: Sequence[Row], sweeps: Sequence[Sweep], axis: Axis) -> Figure:
    """Plots cost and regret of every policy: bars for the mean, ticks for the worst scenario. Lower is better."""
    names = list(dict.fromkeys(row["policy"] for row in rows))
    accuracy, loss = seed_noise(budgeted(sweeps, axis), axis)
    sides = (
        ("cost", 1.0, f"{axis} spent, in full runs", np.nan),
        ("regret", 100.0, "regret in accuracy, points", accuracy),
        ("reference_loss_regret", 1.0, "regret in reference loss", loss),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.4 + 0.3 * len(names)), layout="constrained")
        panels: Any = figure.subplots(1, 3, sharey=True)
        for panel, (column, scale, label, noise) in zip(panels, sides, strict=True):
            scores = [score([row for row in rows if row["policy"] == name], column) for name in names]
            if np.isfinite(noise):
                panel.axvspan(0, scale * noise, color="#eeeeee", zorder=0, label="standard deviation over seeds")
                panel.legend(loc="lower right", fontsize=8)
            means, worst = ([scale * getattr(s, part) if s else np.nan for s in scores] for part in ("mean", "worst"))
            panel.barh(names, means, color=colours(1)[0], height=0.6)
            panel.plot(worst, names, "|", color="#444444", markersize=11)
            panel.set_xlabel(label)
            panel.set_xlim(left=0)
            panel.grid(visible=False, axis="y")
        panels[0].invert_yaxis()
    return figure


def _forecasts(rows: Sequence[Row]) -> Figure:
    """Plots error and coverage of the 80 % interval over the observed fraction of the run."""
    names = list(dict.fromkeys(row["forecaster"] for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        panels: Any = figure.subplots(1, 2)
        for name, colour in zip(names, colours(len(names)), strict=True):
            own = [row for row in rows if row["forecaster"] == name]
            panels[0].plot(FRACTIONS, [row["error"] for row in own], color=colour, marker="o", label=name)
            panels[1].plot(FRACTIONS, [100 * row["coverage_80%"] for row in own], color=colour, marker="o", label=name)
        panels[1].axhspan(75, 85, color="#eeeeee", zorder=0, label="nominal")
        panels[0].set_ylabel("mean absolute error of the final loss")
        panels[1].set_ylabel("coverage of the 80 % interval, %")
        panels[1].set_ylim(0, 104)
        for panel in panels:
            panel.set_xlabel("observed fraction of the run")
            panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            panel.legend()
    return figure


def _curves(sweeps: Sequence[Sweep], axis: Axis) -> Figure:
    """Plots the reference losses of every sweep."""
    drawn = sweeps[:_MAX_SWEEPS]
    columns = min(len(drawn), 4)
    lines = -(-len(drawn) // columns)
    keys = list(dict.fromkeys(run.key for sweep in drawn for run in sweep.runs))
    by_key = dict(zip(keys, colours(len(keys)), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * columns + 0.8, 2.9 * lines), layout="constrained")
        panels: Any = figure.subplots(lines, columns, squeeze=False)
        for panel in panels.flat[len(drawn) :]:
            panel.set_axis_off()
        for panel, sweep in zip(panels.flat, drawn, strict=False):
            for run in sweep.runs:
                panel.plot(run.time(axis), run.reference_loss, color=by_key[run.key], linewidth=1.3)
            panel.set_title(str(sweep), fontsize=9)
            panel.set_xlabel(axis)
        panels[0][0].set_ylabel("reference loss")
        handles = [Line2D([], [], color=colour, label=key) for key, colour in by_key.items()]
        figure.legend(handles=handles, title="batch size", loc="outside right center")
    return figure
