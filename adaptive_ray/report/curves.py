"""Plots of the report as SVG or PNG. Imports matplotlib, which workers do not need."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from adaptive_ray.report.accuracies import PROBES, REPRESENTATIONS, percent
from schedulers import Candidate, Forecast
from trainables.report import METRICS

#: Colour-blind safe palette of Okabe & Ito, without yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
#: Colours of the classifiers.
_BARS = (_COLOURS[0], _COLOURS[4], _COLOURS[2])
#: matplotlib settings of all plots.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # keep text as text
    "svg.hashsalt": "adaptive_ray",  # deterministic output
    "font.family": ["sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}

Curves = Mapping[str, Mapping[str, Any]]


def forecasts_at_decision(decisions: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, Forecast]]]:
    """Returns the forecasts that the first race was decided on, by candidate: samples and losses to the end."""
    won = next((i for i, entry in enumerate(decisions) if entry["state"] == "won"), len(decisions))
    paths = {entry["candidate"]: entry.get("path", []) for entry in decisions[: won + 1]}
    return {
        key: [(samples, Forecast(mean, std)) for samples, mean, std in path if None not in (mean, std)]
        for key, path in paths.items()
    }


def loss_curves(curves: Curves, decisions: Sequence[Mapping[str, Any]], winner: str) -> str:
    """Plots reference loss and forecasts over samples, and the training loss beside it. Returns SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
        paths = forecasts_at_decision(decisions)
        for (key, curve), colour in zip(curves.items(), colours(len(curves)), strict=True):
            label = f"{key} (chosen)" if key == winner else key
            samples, losses = _numbers(curve["samples"]), _numbers(curve["reference_loss"])
            wide = 2.4 if key == winner else 1.4
            left.plot(samples, losses, color=colour, label=label, linewidth=wide, marker="o", markersize=3)
            right.plot(samples, _numbers(curve["train_loss"]), color=colour, linewidth=wide)
            if path := paths.get(key):
                ahead, forecasts = zip(*path, strict=True)
                low, high = zip(*(forecast.interval() for forecast in forecasts), strict=True)
                left.plot(ahead, [forecast.mean for forecast in forecasts], color=colour, linestyle="--", linewidth=1)
                left.fill_between(ahead, low, high, color=colour, alpha=0.12, linewidth=0)
        left.set_title(
            "Reference loss: reported (points), forecast at the decision (dashed, 80 %)",
            loc="left",
            fontsize=10,
        )
        left.legend(title="batch size")
        _limit(left, curves)
        right.set_title("Training loss (not comparable)", loc="left", fontsize=10)
        for axes in (left, right):
            samples_axis(axes)
        return svg(figure)


def batch_sizes(curves: Curves, decisions: Sequence[Mapping[str, Any]], winner: str) -> str:
    """Plots batch size over samples and marks the decisions. Returns SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.6), layout="constrained")
        axes = figure.subplots()
        courses = {  # the candidate of a run at its start and at each report
            key: [Candidate.from_dict(curve), *map(Candidate, curve["batch_sizes"], curve["accumulations"])]
            for key, curve in curves.items()
        }
        used = sorted({candidate for course in courses.values() for candidate in course})
        keys = [candidate.key for candidate in used]
        place = {key: row for row, key in enumerate(keys)}
        for (key, curve), colour in zip(curves.items(), colours(len(curves)), strict=True):
            rows = [place[candidate.key] for candidate in courses[key]]
            samples, wide = [0, *curve["samples"]], 6 if key == winner else 3
            axes.plot(samples, rows, color=colour, linewidth=wide, solid_capstyle="butt", drawstyle="steps-pre")
        marks = {"pruned": ("X", "#c0392b", "pruned"), "won": ("*", "#1e8449", "won")}
        for entry in decisions:
            if entry["state"] in marks and entry["candidate"] in curves:
                marker, colour, label = marks[entry["state"]]
                row = place[entry["candidate"]]
                shown = label if label not in axes.get_legend_handles_labels()[1] else None
                axes.scatter([entry["samples"]], [row], marker=marker, s=150, color=colour, label=shown, zorder=3)
        axes.set_yticks(range(len(keys)), keys)
        axes.set_ylim(-0.6, len(keys) - 0.4)
        axes.set_ylabel("batch size")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=2)
        samples_axis(axes)
        return svg(figure)


def online_accuracy(curves: Curves, winner: str) -> str:
    """Plots the online kNN accuracy over samples and over training time. Returns SVG, empty without measurements."""
    name = "online_knn_accuracy"
    if all(value is None for curve in curves.values() for value in curve.get(name, [])):
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        panels = dict(zip(("samples", "seconds"), figure.subplots(1, 2, sharey=True), strict=True))
        for (key, curve), colour in zip(curves.items(), colours(len(curves)), strict=True):
            measured = [row for row, value in enumerate(curve.get(name, [])) if value is not None]
            look = {"color": colour, "linewidth": 2.4 if key == winner else 1.4, "marker": "o", "markersize": 3}
            for column, axes in panels.items():
                places = _numbers([curve[column][row] for row in measured])
                label = f"{key} (chosen)" if key == winner else key
                axes.plot(places, [100 * curve[name][row] for row in measured], label=label, **look)
        panels["samples"].legend(title="batch size")
        panels["samples"].set_ylabel("accuracy on held-out images, %")
        samples_axis(panels["samples"])
        panels["seconds"].set_xlim(left=0)
        panels["seconds"].set_xlabel(METRICS["seconds"].title)
        return svg(figure)


def accuracies(result: Mapping[str, Any]) -> str:
    """Plots the accuracies of trained encoder, untrained encoder and raw pixels. Returns SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.2), layout="constrained")
        axes = figure.subplots()
        names = ("trained encoder", "untrained encoder", "raw pixels")
        for offset, (probe, title), colour in zip((0.27, 0, -0.27), PROBES.items(), _BARS, strict=True):
            shares = [result.get(f"{prefix}{probe}_accuracy") for prefix in REPRESENTATIONS]
            values = [100 * (share or 0) for share in shares]
            bars = axes.barh(np.arange(3)[::-1] + offset, values, 0.25, color=colour, label=title)
            axes.bar_label(bars, labels=[percent(share) for share in shares], padding=4, fontsize=9)
        axes.set_yticks(np.arange(3)[::-1], names)
        axes.set_xlim(0, 112)
        axes.set_xlabel("accuracy on held-out images, %")
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside right upper")
        return svg(figure)


def neighbours(queries: Any, nearest: Any) -> bytes:
    """Plots held-out images, uint8 [r, C, H, W], with their nearest training images [r, k, C, H, W]. Returns PNG."""
    rows, shown = nearest.shape[:2]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=((shown + 1) * 0.8 + 0.3, rows * 0.8 + 0.3), layout="constrained", dpi=110)
        grid = figure.subplots(rows, shown + 1, squeeze=False, width_ratios=[1.25, *[1] * shown])
        for row in range(rows):
            for column, image in enumerate([queries[row], *nearest[row]]):
                axes = grid[row][column]
                axes.imshow(pixels(image), cmap="gray", interpolation="nearest")
                axes.set_axis_off()
        grid[0][0].set_title("held out", fontsize=9)
        grid[0][1].set_title("nearest in training", fontsize=9, loc="left")
        return png(figure)


def pixels(image: Any) -> Any:
    """Returns the pixels of an image [C, H, W] as matplotlib shows them: [H, W, 3], or [H, W] if it is grey."""
    return image.transpose(1, 2, 0).squeeze()


def colours(count: int) -> list[str]:
    """One colour per line; they repeat after seven."""
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _limit(axes: Axes, curves: Curves) -> None:
    """Limits the y axis to the reported losses, regardless of intervals."""
    losses = np.concatenate([_numbers(curve["reference_loss"]) for curve in curves.values()])
    losses = losses[np.isfinite(losses)]
    if len(losses):
        low, high = float(losses.min()), float(losses.max())
        margin = 0.12 * max(high - low, 1e-3)
        axes.set_ylim(low - 2 * margin, high + margin)


def samples_axis(axes: Axes) -> None:
    """Formats an x axis of samples in thousands."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
    axes.set_xlabel(METRICS["samples_seen"].title)


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """Returns a figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
