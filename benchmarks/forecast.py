"""Measures the time of the forecasters, which are called after every report, and compares it with the limits.

    make bench            or: python benchmarks/forecast.py

Curves are sampled from a power law with known rates; the last column counts how often the best one is found.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from schedulers import FORECASTERS

RATES = {"32": 0.7, "64": 1.3, "128": 1.0, "256": 0.9, "512": 0.8}
BUDGET, POINTS, REPEATS = 100_000, 50, 20
#: Limits of a fit in milliseconds, by number of candidates.
LIMITS = {5: 10.0, 1: 1.0}


def curve(rate: float, until: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    samples = np.linspace(until / POINTS, until, POINTS)
    noise = 0.01 * np.random.default_rng(seed).standard_normal(POINTS)
    return samples, 2 + 1.5 * (rate * samples / 10_000 + 0.1) ** -0.5 + noise


def milliseconds(name: str, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    times = []
    for _ in range(REPEATS):
        forecaster = FORECASTERS[name]()
        started = time.perf_counter()
        forecaster.fit(curves)
        for key in curves:
            forecaster.forecast(key, BUDGET)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def main() -> None:
    table = Table(title=f"Fit and forecast, median of {REPEATS}, {POINTS} points per curve")
    for title in (
        "forecaster",
        "5 curves, ms",
        "limit",
        "1 curve, ms",
        "limit",
        "best found at 5 / 10 / 30 % of 20 runs",
    ):
        table.add_column(title, justify="right")
    for name in FORECASTERS:
        five = {key: curve(rate, 0.3 * BUDGET, 0) for key, rate in RATES.items()}
        found = []
        for share in (0.05, 0.1, 0.3):
            hits = 0
            for seed in range(20):
                forecaster = FORECASTERS[name]()
                curves = {k: curve(r, share * BUDGET, 31 * seed + i) for i, (k, r) in enumerate(RATES.items())}
                forecaster.fit(curves)
                forecasts = {key: forecaster.forecast(key, BUDGET).mean for key in curves}
                hits += min(forecasts, key=forecasts.__getitem__) == "64"
            found.append(f"{hits}")
        table.add_row(
            name,
            f"{milliseconds(name, five):.2f}",
            f"{LIMITS[5]:g}",
            f"{milliseconds(name, {'64': five['64']}):.2f}",
            f"{LIMITS[1]:g}",
            " / ".join(found),
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
