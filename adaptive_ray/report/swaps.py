"""Plots forecasts, deviations and swaps within a run. Imports matplotlib, which workers do not need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from adaptive_ray.report.curves import STYLE, colours, samples_axis, svg
from schedulers import Candidate
from trainables.report import METRICS, TrainingReport

#: Deviations are clipped to this many standard deviations.
_MOST = 4.0


def swap_picture(reports: Sequence[TrainingReport], decisions: Sequence[Mapping[str, Any]]) -> str:
    """Returns ``swap_figure`` as SVG."""
    with matplotlib.rc_context(STYLE):
        return svg(swap_figure(reports, decisions))


def swap_figure(reports: Sequence[TrainingReport], decisions: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots losses with their forecasts, forecast deviations and the candidate in use.

    ``decisions`` are at least one ``SwapDecision.as_dict()`` of the same run.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    losses, deviations, course = figure.subplots(3, 1, sharex=True, height_ratios=[2.4, 1, 1])
    samples = [report.samples_seen for report in reports]
    losses.plot(samples, [report.reference_loss for report in reports], color="#444444", linewidth=1, label="report")
    compared = [decision for decision in decisions if decision["forecast"] is not None]
    at = [decision["samples"] for decision in compared]
    losses.errorbar(
        at,
        [decision["forecast"] for decision in compared],
        yerr=[decision["forecast_std"] or 0.0 for decision in compared],
        fmt="o",
        markersize=3,
        linewidth=1,
        color=colours(1)[0],
        label="forecast (± standard deviation)",
    )
    losses.set_ylabel(METRICS["reference_loss"].label)
    losses.legend()

    heights = np.clip([decision["deviation"] or 0.0 for decision in compared], -_MOST, _MOST)
    bad, good = colours(3)[1:]
    width = 0.6 * (samples[-1] - samples[0]) / max(len(compared), 1)
    deviations.bar(at, heights, width=width, color=[good if height >= 0 else bad for height in heights])
    deviations.axhline(0, color="#444444", linewidth=0.8)
    deviations.set_ylabel("forecast deviation\n(+) lower, (-) higher")

    used = [report.candidate for report in reports]
    named = {decision[name] for decision in decisions for name in ("candidate", "chosen")}
    rows = {candidate.key: row for row, candidate in enumerate(sorted({*used, *map(Candidate.parse, named)}))}
    course.step(samples, [rows[candidate.key] for candidate in used], where="pre", color="#444444")
    for decision in decisions:
        if decision["candidate"] != decision["chosen"] or decision["action"] == "confirm":
            place = (decision["samples"], rows[decision["chosen"]])
            course.annotate(decision["action"], place, xytext=(2, 4), textcoords="offset points", fontsize=8)
    course.set_yticks(range(len(rows)), list(rows))
    course.set_ylim(-0.5, len(rows) - 0.2)
    course.set_ylabel(METRICS["batch_size"].label)
    samples_axis(course)
    return figure
