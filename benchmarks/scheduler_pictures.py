"""Draws the plots of docs/scheduler.md from recorded runs.

python benchmarks/scheduler_pictures.py                     # from benchmarks/curves into docs/
python benchmarks/scheduler_pictures.py --runs RUNS.json    # also plots swaps (from strategies.py --out)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaptive_ray.replay.loading import load_sweeps
from adaptive_ray.replay.recordings import Sweep
from adaptive_ray.report.curves import STYLE, colours
from adaptive_ray.report.swaps import swap_figure
from schedulers import JointForecaster, PerCurveForecaster
from schedulers.forecast.schedule_clock import annealed
from trainables.report import TrainingReport

HERE = Path(__file__).parent
#: Observed fraction of the run in the plotted forecasts.
KNOWN = 0.1


def raw_losses(sweep: Sweep) -> Figure:
    """Plots training loss, reference loss and probe accuracy."""
    figure, panels = _panels(3)
    names = ("raw NT-Xent of the training batch", "reference loss", "probe accuracy, %")
    tones = colours(len(sweep.runs))
    for run, tone in zip(sweep.runs, tones, strict=True):
        panels[0].plot(run.samples, run.train_loss, color=tone, linewidth=1.2)
        panels[1].plot(run.samples, run.reference_loss, color=tone, linewidth=1.2)
    accuracies = sweep.accuracies("samples") or {}
    panels[2].bar(list(accuracies), [100 * accuracy for accuracy in accuracies.values()], color=tones)
    panels[2].set_ylim(100 * min(accuracies.values()) - 2)
    panels[2].set_xlabel("batch size")
    _legend(figure, sweep)
    for panel, name in zip(panels, names, strict=True):
        panel.set_title(name, loc="left", fontsize=10)
    for panel in panels[:2]:
        panel.set_xlabel("samples")
    return figure


def forecasts(sweep: Sweep) -> Figure:
    """Plots forecasts after a tenth of the run, from single curves and from all curves, and the shared curve."""
    figure, panels = _panels(3)
    budget = sweep.budget("samples")
    ends = dict.fromkeys(sweep.by_key, budget)
    curves = {}
    for key, run in sweep.by_key.items():
        seen = run.time("samples") <= KNOWN * budget
        curves[key] = (run.time("samples")[seen], np.array(run.reference_loss)[seen])
    alone, joint = PerCurveForecaster(), JointForecaster()
    alone.fit(curves, ends)
    joint.fit(curves, ends)
    rates = joint.rates()
    for run, tone in zip(sweep.runs, colours(len(sweep.runs)), strict=True):
        ahead = np.geomspace(KNOWN * budget, budget, 50)
        for panel, forecaster in zip(panels, (alone, joint), strict=False):
            panel.plot(run.samples, run.reference_loss, color=tone, linewidth=1, alpha=0.5)
            panel.plot(*curves[run.key], color=tone, linewidth=2.5)
            means = [forecaster.forecast(run.key, at).mean for at in ahead]
            panel.plot(ahead, means, color=tone, linestyle="--", linewidth=1.3)
        progress = np.exp(rates[run.key][0]) * annealed(run.samples, budget)
        panels[2].plot(progress, run.reference_loss, color=tone, linewidth=1.2)
    panels[0].set_title(f"single-curve forecasts after {KNOWN:.0%} of the run", loc="left", fontsize=10)
    panels[1].set_title("joint forecasts: one curve, one rate per run", loc="left", fontsize=10)
    panels[2].set_title("runs over progress = rate x samples", loc="left", fontsize=10)
    _legend(figure, sweep)
    low, high = (f(loss for run in sweep.runs for loss in run.reference_loss) for f in (min, max))
    for panel in panels:
        panel.set_xscale("log")
        panel.set_ylim(low - 0.4 * (high - low), high + 0.05 * (high - low))
        panel.set_xlabel("samples (log)" if panel is not panels[2] else "progress (log)")
    return figure


def _panels(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    return figure, figure.subplots(1, count)


def _legend(figure: Figure, sweep: Sweep) -> None:
    tones = colours(len(sweep.runs))
    handles = [Line2D([], [], color=tone, label=run.key) for run, tone in zip(sweep.runs, tones, strict=True)]
    figure.legend(handles=handles, title="batch size", loc="outside right center")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, default=HERE / "curves")
    parser.add_argument("--sweep", nargs=3, default=["cifar10", "sqrt", "0"], help="data set, rule and seed")
    parser.add_argument("--runs", type=Path, help="file written by strategies.py --out")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs")
    options = parser.parse_args()

    dataset, rule, seed = options.sweep
    wanted = (dataset, rule, int(seed))
    sweep = next(s for s in load_sweeps(options.curves) if (s.dataset, s.learning_rate_rule, s.seed) == wanted)
    matplotlib.rcParams.update(STYLE)
    figures = {"raw_losses": raw_losses(sweep), "forecasts": forecasts(sweep)}
    if options.runs is not None:
        runs = [run for run in json.loads(options.runs.read_text()) if "swaps" in run["strategy"]]
        busiest = max(runs, key=lambda run: sum(decision["action"] != "keep" for decision in run["decisions"]))
        reports = list(map(TrainingReport.from_dict, busiest["reports"]))
        figures["swaps"] = swap_figure(reports, busiest["decisions"])
    for name, figure in figures.items():
        file = options.out / f"{name}.png"
        figure.savefig(file, dpi=110)
        print(file)


if __name__ == "__main__":
    main()
