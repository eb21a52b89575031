"""Choices of a batch size on the traces of Zeus (You et al. 2023): seconds to a target accuracy on four kinds of GPU.

Part of ``public_curves.py``.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from schedulers import FORECASTERS

GPUS = ("a40", "p100", "rtx6000", "v100")


class Setting(NamedTuple):
    """A data set and network of Zeus on one kind of GPU."""

    name: str
    epoch_seconds: dict[str, float]  # by batch size
    reached: dict[str, list[dict[float, float]]]  # epochs by target, for every seed
    falls: bool  # whether the metric falls (an error rate) or rises (an accuracy)

    def seconds_to(self, target: float) -> dict[str, float]:
        """Returns mean seconds. A seed that misses the target counts as the longest run: a lower bound."""
        longest = max(e for seeds in self.reached.values() for seed in seeds for e in seed.values() if e < math.inf)
        return {
            key: self.epoch_seconds[key] * float(np.mean([min(seed[target], longest) for seed in seeds]))
            for key, seeds in self.reached.items()
        }

    def target(self) -> float:
        """Returns the hardest target that at least half of the batch sizes reach with every seed."""
        targets = sorted(next(iter(self.reached.values()))[0], reverse=self.falls)
        shares = {
            target: np.mean([all(seed[target] < math.inf for seed in seeds) for seeds in self.reached.values()])
            for target in targets
        }
        return [target for target in targets if shares[target] >= 0.5][-1]

    def curve(self, seed: Mapping[float, float], epochs: int) -> np.ndarray:
        """Returns the loss after every epoch, as far as known: the hardest target that was reached."""
        worst = 100.0 if self.falls or max(seed) > 1 else 1.0
        losses = {target: target if self.falls else worst - target for target in seed}
        return np.array(
            [
                min((losses[target] for target, at in seed.items() if at <= epoch), default=worst)
                for epoch in range(1, epochs + 1)
            ]
        )


def zeus_settings(directory: Path, gpu: str) -> Iterator[Setting]:
    """Reads the settings of one kind of GPU, at the highest power limit of every batch size."""
    seconds: dict[tuple[str, ...], tuple[float, float]] = {}
    with (directory / "zeus" / f"summary_power_{gpu}.csv").open() as file:
        for row in csv.DictReader(file):
            key = tuple(row[name] for name in ("dataset", "network", "optimizer", "batch_size"))
            seconds[key] = max(seconds.get(key, (0.0, 0.0)), (float(row["power_limit"]), float(row["time_per_epoch"])))
    runs: dict[tuple[str, ...], dict[str, dict[str, dict[float, float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    with (directory / "zeus" / "summary_train.csv").open() as file:
        for row in csv.DictReader(file):
            epoch = float(row["target_epoch"] or "inf")
            setting = tuple(row[name] for name in ("dataset", "network", "optimizer"))
            seed = runs[setting][row["batch_size"]][row["run"]]
            seed[float(row["target_metric"])] = epoch if math.isfinite(epoch) else math.inf
    for setting, sizes in runs.items():
        known = {size: seconds[*setting, size][1] for size in sizes if (*setting, size) in seconds}
        if len(known) > 1:
            reached = {size: list(sizes[size].values()) for size in known}
            yield Setting(setting[0], known, reached, falls=setting[0] == "librispeech")


def zeus(directory: Path) -> Table:
    """Returns the seconds to the target of the choice, relative to the best's, per kind of GPU and observed time."""
    table = Table(
        title="Zeus: seconds to the target of the chosen batch size / of the best",
        caption="observed: part of the best run's seconds, for every batch size. Settings in which fewer than two end "
        "an epoch by then are left out. Recorded is when targets were reached: curves are known in steps of 5 points",
    )
    for title in ("observed", "GPU", "settings", "joint", "per_curve", "last loss", "most epochs", "random"):
        table.add_column(title, justify="left" if title in ("GPU", "settings") else "right")
    for observed in (0.1, 0.2, 0.3):
        means = []
        for gpu in GPUS:
            ratios = {s.name: zeus_ratios(s, observed) for s in zeus_settings(directory, gpu)}
            usable = {name: values for name, values in ratios.items() if values}
            mean = np.mean(list(usable.values()), axis=0)
            means.append(mean)
            table.add_row(f"{observed:.0%}", gpu, ", ".join(usable), *(f"{value:.2f}" for value in mean))
        table.add_row(f"{observed:.0%}", "mean", "", *(f"{value:.2f}" for value in np.mean(means, axis=0)))
    return table


def zeus_ratios(setting: Setting, observed: float) -> list[float]:
    """Returns the ratios of joint, per_curve, last loss, most epochs and random; empty if nothing is observed."""
    times = setting.seconds_to(setting.target())
    best = min(times.values())
    rows = []
    for seed in range(5):
        curves = {}
        for size, seconds in setting.epoch_seconds.items():
            if epochs := int(observed * best / seconds):
                seeds = setting.reached[size]
                curves[size] = (np.arange(1.0, epochs + 1), setting.curve(seeds[seed % len(seeds)], epochs))
        if len(curves) < 2:
            return []
        ends = {size: best / setting.epoch_seconds[size] for size in curves}
        row = []
        for name in ("joint", "per_curve"):
            forecaster = FORECASTERS[name](averaged=False)
            forecaster.fit(curves)
            chances = forecaster.probability_best(ends)
            row.append(float(np.mean([times[key] for key, p in chances.items() if p == max(chances.values())])))
        lowest = min(losses[-1] for _, losses in curves.values())
        row.append(float(np.mean([times[key] for key, (_, losses) in curves.items() if losses[-1] == lowest])))
        row += [times[min(curves, key=lambda key: setting.epoch_seconds[key])], float(np.mean(list(times.values())))]
        rows.append(row)
    return (np.mean(rows, axis=0) / best).tolist()
