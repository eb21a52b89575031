"""Plots of adaptive accumulation and sample weights. Imports matplotlib, which workers do not need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from adaptive_ray.report.curves import STYLE, colours, pixels, png, samples_axis, svg
from trainables.report import METRICS, TrainingReport


def information(curve: Mapping[str, Any]) -> str:
    """Plots micro-batches per update, their scores and images per update of an entry of ``curves.json``. SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.6), layout="constrained")
        panels = ("batches_per_update", "information", "images_per_update")
        for axes, name, colour in zip(figure.subplots(1, 3), panels, colours(3), strict=True):
            axes.plot(curve["samples"], curve[name], color=colour, linewidth=1.6, marker="o", markersize=3)
            if name == "information":
                axes.plot(curve["samples"], curve["least_information"], color=colour, linewidth=1, linestyle="--")
            lowest = " (dashed: lowest)" if name == "information" else ""
            axes.set_title(METRICS[name].label + lowest, loc="left", fontsize=10)
            top = 1.0 if name == "information" else 1.15 * max(curve[name])
            axes.set_ylim(0, 1.05 * top)
            samples_axis(axes)
        return svg(figure)


def weighted_images(images: Any, first: TrainingReport, last: TrainingReport, budget: int) -> bytes:
    """Plots the images of a batch with the highest and lowest weights, early and late in a run. Returns PNG."""
    names = {"most": "highest", "least": "lowest"}
    rows = [(report, kind, (report.weighted or {})[kind]) for report in (first, last) for kind in names]
    shown = max(len(weights) for _, _, weights in rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(shown * 0.95 + 2.2, 4 * 1.12), layout="constrained", dpi=110)
        grid = figure.subplots(4, shown, squeeze=False)
        for line, (report, kind, weights) in zip(grid, rows, strict=True):
            for axes in line:
                axes.set_axis_off()
            for axes, (index, weight) in zip(line, weights, strict=False):
                axes.imshow(pixels(images[index : index + 1][0]), cmap="gray", interpolation="nearest")
                axes.set_title(f"{weight:.2f}", fontsize=8)
            share = min(report.samples_seen / budget, 1.0)
            text = f"{names[kind]} weights\nat {100 * share:.0f} %\nof the run"
            line[0].text(-0.2, 0.5, text, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        return png(figure)


def weighted_reports(reports: Sequence[TrainingReport]) -> tuple[TrainingReport, TrainingReport] | None:
    """The first and the last report with weighted images; None if there are none."""
    named = [report for report in reports if report.weighted]
    return (named[0], named[-1]) if named else None
