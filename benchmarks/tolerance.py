"""What different values of ``race.tolerance`` cost in probe accuracy and save in time, on recorded runs.

    python benchmarks/tolerance.py       # a second, without Ray

The recordings in ``curves/`` were made on CPUs. Here, every batch size has the throughput that was measured on an H200
(``h200_cifar10.json``); that of 32 is extrapolated. All numbers are relative to a tolerance of 0.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from adaptive_ray.replay.recordings import Sweep, load_sweeps
from schedulers import JointForecaster
from schedulers.forecast import TieBreak

HERE = Path(__file__).resolve().parent
TOLERANCES = (0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05)
H200 = json.loads((HERE / "h200_cifar10.json").read_text())
SIZES = [str(size) for size in H200["batch_sizes"]]
#: Images per second with the GPU to itself, by candidate.
SPEEDS: dict[str, float] = {"32": 11_000.0} | dict(zip(SIZES, map(float, H200["images_per_second"]), strict=True))
Values = dict[str, float]


def forecasts(sweep: Sweep, fraction: float) -> Values:
    """Returns the losses at the end of the budget, forecast after a fraction of it."""
    budget, forecaster = sweep.budget("samples"), JointForecaster()
    counts = {run.key: run.count("samples", fraction * budget) for run in sweep.runs}
    curves = {run.key: (run.samples[: counts[run.key]], run.reference_loss[: counts[run.key]]) for run in sweep.runs}
    forecaster.fit(curves, dict.fromkeys(counts, budget))
    return {key: forecaster.forecast(key, budget).mean for key in counts}


def chosen(ends: Values, first: float, tolerance: float) -> str:
    """Returns the fastest candidate whose loss is within the tolerance, a fraction of the decrease from ``first``."""
    return str(TieBreak(tolerance * (first - min(ends.values())), SPEEDS).best(ends))


def effect(cases: list[tuple[Values, float, Values]], tolerance: float) -> tuple[float, float, float]:
    """Returns the mean and the worst cost in probe points, and the geometric mean of the speed-up.

    Args:
        cases: Losses at the end by candidate, first loss, and probe accuracies by candidate.
        tolerance: Fraction of the decrease in loss.
    """
    costs, speedups = [], []
    for ends, first, probes in cases:
        lowest, choice = chosen(ends, first, 0.0), chosen(ends, first, tolerance)
        costs.append(100 * (probes[lowest] - probes[choice]))
        speedups.append(SPEEDS[choice] / SPEEDS[lowest])
    return float(np.mean(costs)), max(costs), float(np.exp(np.mean(np.log(speedups))))


def main() -> None:
    sweeps = load_sweeps(HERE / "curves")
    firsts = [max(run.reference_loss[0] for run in sweep.runs) for sweep in sweeps]
    probes = [sweep.accuracies("samples") or {} for sweep in sweeps]
    sources = {
        "true losses": [sweep.final_losses("samples") for sweep in sweeps],
        "forecasts at 10 %": [forecasts(sweep, 0.1) for sweep in sweeps],
        "forecasts at 20 %": [forecasts(sweep, 0.2) for sweep in sweeps],
    }
    cases = {name: list(zip(ends, firsts, probes, strict=True)) for name, ends in sources.items()}
    ends, accuracies = (dict(zip(SIZES, H200[name], strict=True)) for name in ("reference_loss", "probe_accuracy"))
    cases["H200, true losses"] = [(ends, H200["first_loss"], accuracies)]
    table = Table(title=f"{len(sweeps)} sweeps: mean cost in probe points / worst / speed-up, relative to tolerance 0")
    for title in ("tolerance", *cases, "H200, choice"):
        table.add_column(title, justify="right")
    for tolerance in TOLERANCES:
        found = [effect(each, tolerance) for each in cases.values()]
        cells = [f"{mean:+.2f} / {worst:+.2f} / {speedup:.2f}" for mean, worst, speedup in found]
        table.add_row(f"{tolerance:g}", *cells, chosen(ends, H200["first_loss"], tolerance))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
