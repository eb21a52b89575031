"""Scores forecasts on curves that others recorded: errors, coverage of intervals, choices, and time of a decision.

    make bench            or: python benchmarks/public_curves.py [DIRECTORY]

DIRECTORY (``../shared/curves`` by default) contains three public data sets; those that are absent are left out.

- ``multipowerlaw/``: language models under nine learning-rate schedules (raw weights; Luo et al. 2025).
- ``taskset.npz``: 1,000 settings of Adam on 12 text tasks (raw weights, constant rates; Metz et al. 2020).
- ``zeus/``: seconds and epochs to target accuracies by batch size on four kinds of GPU (You et al. 2023).

The scenarios recorded for this project (averaged weights, cosine decay) are scored in the same way.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from zeus import zeus

from adaptive_ray.replay.loading import load_sweeps
from schedulers import FORECASTERS, Forecaster, JointForecaster, Race, State
from schedulers.forecast import schedule_clock

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared" / "curves"
FRACTIONS = (0.1, 0.2, 0.3, 0.5)
#: Standard deviations of the 50, 80 and 95 % intervals.
LEVELS = (0.6745, 1.2816, 1.96)
#: Percent of the budget after which all but the lowest loss are discarded.
DISCARD = (2, 4, 6, 10, 20)
CONSOLE = Console(width=170)


class Curve(NamedTuple):
    """A recorded curve; without learning rates, they are constant."""

    samples: np.ndarray
    losses: np.ndarray
    rates: np.ndarray
    first: float = 0.0  # samples before the recording


Group = Mapping[str, Curve]


def scenarios() -> list[Group]:
    """Returns the sweeps recorded for this project."""
    return [
        {
            run.key: Curve(np.array(run.samples), np.array(run.reference_loss), np.array(run.learning_rate))
            for run in sweep.runs
        }
        for sweep in load_sweeps(HERE / "scenarios")
    ]


def multipowerlaw(directory: Path) -> list[Group]:
    """Returns one group per run: the three models differ, and so do the ends of the schedules."""
    groups = []
    for file in sorted(directory.glob("multipowerlaw/*/*.csv")):
        step, rate, loss = np.loadtxt(file, delimiter=",", skiprows=1, unpack=True)
        groups.append({f"{file.parent.name}/{file.stem}": Curve(step, loss, rate, first=float(step[0]))})
    return groups


def taskset(directory: Path, size: int, count: int) -> list[Group]:
    """Returns ``count`` groups per task of ``size`` random settings that do not diverge."""
    if not (directory / "taskset.npz").exists():
        return []
    rng, steps, groups = np.random.default_rng(0), 200.0 * np.arange(1, 51), []
    tasks = np.load(directory / "taskset.npz")
    for name in sorted(tasks.files):
        losses = tasks[name].astype(float)
        stable = np.flatnonzero(np.isfinite(losses).all(axis=1) & (losses.max(axis=1) < 5))
        for _ in range(count):
            chosen = rng.choice(stable, min(size, len(stable)), replace=False)
            groups.append({str(i): Curve(steps, losses[i, 1:], np.ones(50)) for i in chosen})
    return groups


class Observation(NamedTuple):
    """A group of which a fraction has been observed, and its forecasts."""

    forecaster: Forecaster
    ends: dict[str, float]
    final: dict[str, float]
    last: dict[str, float]
    decrease: float  # from the first loss to the lowest final one


def observe(group: Group, fraction: float, create: Callable[[], Forecaster], rates: str) -> Observation:
    """Fits the first part of every curve. ``rates``: ``known`` (the whole schedule), ``so far``, or ``none``."""
    curves, learning_rates = {}, {}
    for key, curve in group.items():
        seen = int(np.sum(curve.samples - curve.first <= fraction * (curve.samples[-1] - curve.first) + 1e-9))
        seen = max(seen, 1)
        curves[key] = (curve.samples[:seen], curve.losses[:seen])
        told = {"known": len(curve.samples), "so far": seen, "none": 0}[rates]
        learning_rates[key] = (curve.samples[:told], curve.rates[:told])
        if curve.first and told:  # these recordings begin at the end of the warm-up
            learning_rates[key] = (np.insert(curve.samples[:told], 0, 1.0), np.insert(curve.rates[:told], 0, 0.0))
    ends = {key: float(curve.samples[-1]) for key, curve in group.items()}
    forecaster = create()
    forecaster.fit(curves, ends if rates != "none" else None, learning_rates)
    final = {key: float(curve.losses[-1]) for key, curve in group.items()}
    decrease = max(float(curve.losses[0]) for curve in group.values()) - min(final.values())
    last = {key: float(losses[-1]) for key, (_, losses) in curves.items()}
    return Observation(forecaster, ends, final, last, max(decrease, 1e-9))


def interval_row(groups: Sequence[Group], create: Callable[[], Forecaster], rates: str) -> list[str]:
    """Returns error, in percent of the decrease in loss, and coverage at each observed fraction."""
    cells = []
    for fraction in FRACTIONS:
        errors, scores = [], []
        for seen in (observe(group, fraction, create, rates) for group in groups):
            for key, end in seen.ends.items():
                forecast = seen.forecaster.forecast(key, end)
                errors.append(abs(forecast.mean - seen.final[key]) / seen.decrease)
                scores.append(abs(forecast.mean - seen.final[key]) / forecast.std)
        coverage = " / ".join(f"{100 * np.mean(np.array(scores) <= level):.0f}" for level in LEVELS)
        cells += [f"{100 * np.median(errors):.1f}", coverage]
    return cells


def intervals(directory: Path) -> Table:
    """Returns the errors and coverages of all sets."""
    table = Table(title="Error, median in % of the decrease in loss, and coverage of 50 / 80 / 95 % intervals, in %")
    for title in ("curves", "learning rates", "forecaster"):
        table.add_column(title)
    for fraction in FRACTIONS:
        table.add_column(f"{fraction:.0%}: error", justify="right")
        table.add_column("coverage", justify="right")
    sets = {
        "scenarios": (scenarios(), True, ("so far", "none")),
        "MultiPowerLaw": (multipowerlaw(directory), False, ("known", "so far", "none")),
        "TaskSet, K = 1": (taskset(directory, 1, 20), False, ("so far",)),
        "TaskSet, K = 5": (taskset(directory, 5, 6), False, ("so far",)),
    }
    for name, (groups, averaged, told) in sets.items():
        for rates in told if groups else ():
            for forecaster in FORECASTERS if rates == told[0] else ("joint",):
                create = partial(FORECASTERS[forecaster], averaged=averaged)
                table.add_row(name, rates, forecaster, *interval_row(groups, create, rates))
    return table


def clocks(directory: Path) -> Table:
    """Returns the errors by the power of the learning rate on both halves of the sets."""
    table = Table(title="Choice of the clock: mean error in % of the decrease at 20 and 30 %, whole schedule known")
    for title in ("weights", "power", "first half", "second half"):
        table.add_column(title, justify="right")
    # The first half of the scenarios in the order of names; the two smaller language models.
    runs = multipowerlaw(directory)
    halves = {
        "averaged": (scenarios()[::2], scenarios()[1::2]),
        "raw": (
            [run for run in runs if "csv_400" not in next(iter(run))],
            [run for run in runs if "csv_400" in next(iter(run))],
        ),
    }
    for weights, parts in halves.items():
        name = f"_{weights.upper()}_POWER"
        chosen = getattr(schedule_clock, name)
        for power in (0.0, 0.2, 0.3, 0.4, 0.5, 1.0) if all(parts) else ():
            setattr(schedule_clock, name, power)
            cells = []
            for groups in parts:
                create = partial(JointForecaster, averaged=weights == "averaged")
                observed = [observe(group, fraction, create, "known") for group in groups for fraction in (0.2, 0.3)]
                errors = [
                    abs(seen.forecaster.forecast(key, end).mean - seen.final[key]) / seen.decrease
                    for seen in observed
                    for key, end in seen.ends.items()
                ]
                cells.append(f"{100 * np.mean(errors):.1f}")
            table.add_row(weights, f"{power:g}" + (" (used)" if power == chosen else ""), *cells)
        setattr(schedule_clock, name, chosen)
    return table


def probabilities(directory: Path) -> Table:
    """Returns how often candidates with a given probability of finishing best do so."""
    bins = (0.0, 0.02, 0.1, 0.2, 0.4, 0.7, 1.01)
    table = Table(
        title="Candidates that finish best, in %, by their probability at 10 to 50 % of the run (mean -> actual)"
    )
    table.add_column("curves")
    for low, high in itertools.pairwise(bins):
        table.add_column(f"{low:.0%} to {min(high, 1):.0%}", justify="right")
    for name, groups, averaged in (
        ("scenarios", scenarios(), True),
        ("TaskSet, K = 5", taskset(directory, 5, 12), False),
    ):
        pairs = []
        for seen in (
            observe(group, fraction, partial(JointForecaster, averaged=averaged), "so far")
            for group in groups
            for fraction in FRACTIONS
        ):
            best = min(seen.final, key=lambda key: seen.final[key])
            pairs += [(p, key == best) for key, p in seen.forecaster.probability_best(seen.ends).items()]
        cells = []
        for low, high in itertools.pairwise(bins):
            part = np.array([pair for pair in pairs if low <= pair[0] < high])
            cells.append(f"{100 * part[:, 0].mean():.0f} -> {100 * part[:, 1].mean():.0f}" if len(part) else "")
        if pairs:
            table.add_row(name, *cells)
    return table


def race(group: Group, rule: str) -> tuple[float, float, list[float]]:
    """Replays a race with a window of 10 %. Returns cost in runs, regret, and milliseconds of every report."""
    (end,) = {float(curve.samples[-1]) for curve in group.values()}
    series = Race(list(group), budget=end, window=0.1 * end, rule=rule)  # type: ignore[arg-type]
    times = []
    for index in range(len(next(iter(group.values())).samples)):
        for key, curve in group.items():
            if series.over or series.state(key) is not State.RACING:
                continue
            started = time.perf_counter()
            series.report(key, curve.samples[index], curve.losses[index], float(index), 1.0)
            times.append(1000 * (time.perf_counter() - started))
    spent = sum(max(series.curve(str(key))[0], default=0.0) for key in series.keys if key != series.winner)
    final = {key: float(curve.losses[-1]) for key, curve in group.items()}
    return 1 + spent / end, final[str(series.winner)] - min(final.values()), times


def scale(directory: Path) -> Table:
    """Returns cost, regret and time by the number of candidates, beside those of discarding."""
    table = Table(title="TaskSet: cost in runs, regret in loss, and milliseconds of a report")
    for title in ("K", "policy", "cost", "regret", "median ms", "95 %", "worst"):
        table.add_column(title, justify="left" if title == "policy" else "right")
    for size, count in ((5, 10), (20, 3), (50, 1), (100, 1)):
        groups = taskset(directory, size, count)
        for rule in ("halving", "forecast") if groups else ():
            results = [race(group, rule) for group in groups]
            times = np.concatenate([times for _, _, times in results])
            table.add_row(
                str(size),
                f"race, rule {rule}",
                f"{np.mean([cost for cost, _, _ in results]):.2f}",
                f"{np.mean([regret for _, regret, _ in results]):.4f}",
                *(f"{value:.1f}" for value in (np.median(times), np.quantile(times, 0.95), times.max())),
            )
        for percent in DISCARD if groups else ():
            regrets = []
            for group in groups:
                now = {key: curve.losses[percent // 2 - 1] for key, curve in group.items()}  # a report is 2 %
                final = {key: curve.losses[-1] for key, curve in group.items()}
                regrets.append(final[min(now, key=lambda key: now[key])] - min(final.values()))
            cost = 1 + (size - 1) * percent / 100
            table.add_row(str(size), f"discard at {percent} %", f"{cost:.2f}", f"{np.mean(regrets):.4f}")
    return table


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else SHARED
    for name in ("multipowerlaw", "taskset.npz", "zeus"):
        if not (directory / name).exists():
            CONSOLE.print(f"{directory / name} is absent: skipped")
    for make in (intervals, clocks, probabilities, scale):
        CONSOLE.print(make(directory))
    if (directory / "zeus").exists():
        CONSOLE.print(zeus(directory))


if __name__ == "__main__":
    main()
