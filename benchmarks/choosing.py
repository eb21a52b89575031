"""Compares every way to choose a batch size on all recorded runs, at equal samples and at equal time.

    python benchmarks/choosing.py                     # two minutes: tables, and plots into docs/
    python benchmarks/choosing.py --few               # only the policies that `adaptive-ray replay` shows
    python benchmarks/choosing.py --tolerances        # what the tolerance costs and saves

A *unit* is a budget in samples, or in seconds on the hardware in ``adaptive_ray/replay/hardware.py``. Equal time needs
recordings with learning rates and with accuracies during training: those in ``scenarios/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from adaptive_ray.replay.hardware import HARDWARE
from adaptive_ray.replay.loading import load_sweeps
from adaptive_ray.replay.policies import POLICIES, VARIANTS, Policy, race
from adaptive_ray.replay.recordings import Sweep
from adaptive_ray.replay.replay import REGRETS, Row, regret_cells, replay, score
from adaptive_ray.report.curves import STYLE, colours

HERE = Path(__file__).parent
UNITS = {"samples": "h200", **{f"seconds, {name}": name for name in HARDWARE}}
SIZES = tuple(f"always_{size}" for size in (32, 64, 128, 256, 512, 1024, 2048))
TOLERANCES = (0.0, 0.03, 0.05, 0.07, 0.1)
#: A choice counts as the best within this difference in reference loss.
CLOSE = 0.02
COLUMNS = dict(reversed(REGRETS.items()))


def recorded(unit: str) -> list[Sweep]:
    """Returns the sweeps that can be compared in a unit."""
    folders = ("curves", "scenarios") if unit == "samples" else ("scenarios",)
    return [sweep for folder in folders for sweep in load_sweeps(HERE / folder, UNITS[unit])]


def rows_of(policies: dict[str, Policy], options: argparse.Namespace) -> dict[str, list[Row]]:
    """Returns a row per policy and sweep for every unit."""
    found = {}
    for unit in UNITS:
        sweeps = recorded(unit)
        kept = [s for i, s in enumerate(sweeps) if options.half is None or i % 2 == options.half]
        found[unit] = replay(kept, policies, unit.split(",")[0])
    return found


def of(rows: Sequence[Row], policy: str) -> list[Row]:
    return [row for row in rows if row["policy"] == policy]


def worst(rows: Sequence[Row], column: str) -> float:
    found = score(rows, column)
    return found.worst if found else np.nan


def front(rows: Sequence[Row], column: str) -> set[str]:
    """Returns the policies for which no other has both a lower mean cost and a lower mean regret."""
    points = {}
    for name in names(rows):
        own = of(rows, name)
        points[name] = tuple(float(np.mean([row[c] for row in own if row[c] is not None])) for c in ("cost", column))
    return {
        name
        for name, (cost, regret) in points.items()
        if not any(c <= cost and r <= regret and (c, r) != (cost, regret) for c, r in points.values())
    }


def names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["policy"] for row in rows))


def table(unit: str, rows: Sequence[Row]) -> Table:
    """Returns cost and regrets (mean, 80 % bootstrap interval, worst scenario), and how many choices are close."""
    sweeps = len({(row["scenario"], row["seed"], row["learning_rate_rule"]) for row in rows})
    made = Table(title=f"{unit}: {sweeps} sweeps; *: no policy has a lower cost and a lower regret")
    titles = ("policy", "cost", "seconds", "loss regret", "worst scenario", "regret, points", "worst scenario")
    for title in (*titles, f"within {CLOSE}"):
        made.add_column(title, justify="left" if title == "policy" else "right")
    best = {column: front(rows, column) for column in COLUMNS}
    for name in names(rows):
        own = of(rows, name)
        cost = score(own, "cost")
        assert cost is not None
        cells = [
            f"{cost.mean:.2f} [{cost.low:.2f}, {cost.high:.2f}]",
            f"{np.mean([r['cost_seconds'] for r in own]):.2f}",
        ]
        for column in COLUMNS:
            mean, bad = regret_cells(own, column)
            cells += [f"{mean}{' *' if name in best[column] else '  '}" if mean else "", bad]
        close = np.mean([row["reference_loss_regret"] <= CLOSE for row in own])
        made.add_row(name, *cells, f"{100 * close:.0f} %")
    return made


def pareto(found: dict[str, list[Row]]) -> Figure:
    """Plots the mean cost and the mean regret in loss of every policy, one panel a unit."""
    families = {"discard": "discard", "asha": "ASHA", "forecast": "forecast", "default": "default (halving)"}
    tones = dict(zip(families, colours(len(families)), strict=True))
    figure = Figure(figsize=(15, 3.9), layout="constrained")
    panels: Any = figure.subplots(1, len(found), sharey=True)
    for panel, (unit, rows) in zip(panels, found.items(), strict=True):
        for family, tone in tones.items():
            points = []
            for name in names(rows):
                if name.split("_")[0] == family and "ties" not in name:
                    scores = [score(of(rows, name), column) for column in ("cost", "reference_loss_regret")]
                    points.append([s.mean for s in scores if s])
            costs, regrets = np.array(sorted(points)).T
            line = "none" if family == "asha" else "-"
            panel.plot(
                costs, regrets, "o", linestyle=line, color=tone, label=families[family], markersize=4, linewidth=1
            )
        chosen = [score(of(rows, "default"), column) for column in ("cost", "reference_loss_regret")]
        panel.plot(*[[s.mean] for s in chosen if s], "o", color=tones["default"], markersize=11, fillstyle="none")
        for name in ("always_64", "always_256"):
            regret = score(of(rows, name), "reference_loss_regret")
            assert regret is not None
            panel.plot([1.0], [regret.mean], "x", color="#444444")
            panel.annotate(name.replace("_", " "), (1.0, regret.mean), (4, 3), textcoords="offset points", fontsize=8)
        panel.set_title(unit, loc="left", fontsize=10)
        panel.set_xlabel("cost, full runs")
        panel.set_xlim(0.95, 2.6)
        panel.set_yscale("symlog", linthresh=0.02)
        panel.set_ylim(0, 1.2)
    panels[0].set_ylabel("regret in reference loss (mean)")
    panels[0].legend(fontsize=8)
    return figure


def worst_scenarios(found: dict[str, list[Row]]) -> Figure:
    """Plots the mean regret in the worst scenario of each unit, of every fixed size and of the default."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    shown = (*SIZES, "default")
    tones = colours(len(found))
    for panel, (column, (scale, _)) in zip(panels, COLUMNS.items(), strict=True):
        for offset, (unit, rows) in enumerate(found.items()):
            heights = [scale * worst(of(rows, name), column) for name in shown]
            places = np.arange(len(shown)) + 0.16 * (offset - 2)
            panel.bar(places, heights, width=0.15, color=tones[offset], label=unit)
        labels = [name.removeprefix("always_").replace("default", "chosen\n(default)") for name in shown]
        panel.set_xticks(np.arange(len(shown)), labels)
        panel.grid(visible=False, axis="x")
        panel.axvline(len(SIZES) - 0.5, color="#888888", linewidth=0.8)
        panel.set_xlabel("fixed batch size")
    panels[0].set_title("worst scenario: regret in reference loss", loc="left", fontsize=10)
    panels[1].set_title("worst scenario: regret in kNN accuracy, points", loc="left", fontsize=10)
    panels[0].legend(title="budget in", fontsize=8, loc="upper center")
    return figure


def tolerances() -> Table:
    """Returns cost, regret and speed of the choice at equal samples with different tolerances."""
    made = Table(title="Tolerance of halving, budget in samples, throughputs of an H200")
    for title in ("tolerance", "cost", "loss regret", "worst scenario", "regret, points", "worst scenario", "speed-up"):
        made.add_column(title, justify="right")
    sweeps, first = recorded("samples"), None
    for tolerance in TOLERANCES:
        rows = replay(sweeps, {"race": partial(race, tolerance=tolerance)}, "samples")
        keys = [f"{row['chosen_batch_size']}" for row in rows]
        speeds = np.log([sweep.by_key[key].throughput for sweep, key in zip(sweeps, keys, strict=True)])
        first = speeds if first is None else first
        cells = [f"{np.mean([row['cost'] for row in rows]):.2f}"]
        for column, (scale, digits) in COLUMNS.items():
            found = score(rows, column)
            assert found is not None
            cells += [f"{scale * found.mean:.{digits}f}", f"{scale * found.worst:.{digits}f}"]
        made.add_row(f"{tolerance:g}", *cells, f"{np.exp(np.mean(speeds - first)):.2f}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", action="store_true", help="without the variants")
    parser.add_argument("--half", type=int, choices=(0, 1), help="only every second sweep")
    parser.add_argument("--tolerances", action="store_true")
    parser.add_argument("--out", type=Path, help="directory of the plots; default: docs, none with --few or --half")
    options = parser.parse_args()

    console = Console(width=150)
    if options.tolerances:
        console.print(tolerances())
        return
    found = rows_of(POLICIES if options.few else POLICIES | VARIANTS, options)
    for unit, rows in found.items():
        console.print(table(unit, rows))
    out = options.out or (None if options.few or options.half is not None else HERE.parent / "docs")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    if out is not None:
        with matplotlib.rc_context(STYLE):
            for name, figure in (("choosing", worst_scenarios(found)), ("pareto", pareto(found))):
                figure.savefig(out / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
