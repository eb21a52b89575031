"""What accumulating until informed and weighing samples came to, as pictures. Imports matplotlib; workers do not."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adaptive_ray.report.curves import STYLE, colours, samples_axis, svg


def information(curve: Mapping[str, Any]) -> str:
    """Micro-batches of an update, their scores, and the effective batch size over a run. SVG.

    Args:
        curve: Of ``curves.json``: ``samples``, ``batches_per_update``, ``information``, ``least_information``,
            ``images_per_update``.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.6), layout="constrained")
        panels = (
            ("batches_per_update", "micro-batches of an update"),
            ("information", "scores of micro-batches: mean, and the least"),
            ("images_per_update", "images of an update"),
        )
        for axes, (name, title), colour in zip(figure.subplots(1, 3), panels, colours(3), strict=True):
            axes.plot(curve["samples"], curve[name], color=colour, linewidth=1.6, marker="o", markersize=3)
            if name == "information":
                axes.plot(curve["samples"], curve["least_information"], color=colour, linewidth=1, linestyle="--")
            axes.set_title(title, loc="left", fontsize=10)
            top = 1.0 if name == "information" else 1.15 * max(curve[name])
            axes.set_ylim(0, 1.05 * top)
            samples_axis(axes)
        return svg(figure)


def weighted_images(images: Any, first: Mapping[str, Any], last: Mapping[str, Any], budget: int) -> bytes:
    """The most and the least weighted images of a batch early in a run, and of one at its end. PNG.

    Args:
        images: uint8 [n, C, H, W], or files.
        first: A report's ``samples_seen`` and ``weighted``.
        last: The same of a later report.
        budget: The whole run, in samples.
    """
    rows = [(report, kind) for report in (first, last) for kind in ("most", "least")]
    shown = max(len(report["weighted"][kind]) for report, kind in rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(shown * 0.95 + 2.2, 4 * 1.12), layout="constrained", dpi=110)
        grid = figure.subplots(4, shown, squeeze=False)
        for line, (report, kind) in zip(grid, rows, strict=True):
            for axes in line:
                axes.set_axis_off()
            for axes, (index, weight) in zip(line, report["weighted"][kind], strict=False):
                axes.imshow(_picture(images, index), cmap="gray", interpolation="nearest")
                axes.set_title(f"{weight:.2f}", fontsize=8)
            share = min(report["samples_seen"] / budget, 1.0)
            text = f"{kind} weighted\nafter {100 * share:.0f} %\nof the run"
            line[0].text(-0.2, 0.5, text, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


def weighted_reports(reports: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The first and the last report that name weighted images; None if there are none."""
    named = [report for report in reports if report.get("weighted")]
    return (named[0], named[-1]) if named else None


def _picture(images: Any, index: int) -> NDArray[np.uint8]:
    one: NDArray[np.uint8] = images[index : index + 1][0]
    return one.transpose(1, 2, 0).squeeze()
