"""Compares complete runs: fixed batch sizes, a race, a second race during training, swaps, and rotation.

    python benchmarks/strategies.py --root data                 # CIFAR-10, three seeds, one process per core
    python benchmarks/strategies.py --seeds 0 --epochs 2        # a smoke test

All strategies have the same candidates and budget. The cost includes the samples of losing candidates.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from record_curves import run_settings
from rich.console import Console
from rich.table import Table

from schedulers import JointForecaster, Race, State
from trainables.training.memory_limits import KEEP_MEMORY

#: Window of a race and start of the second race, as fractions of the budget.
WINDOW, AGAIN = 0.1, 0.3

Report = dict[str, Any]


class EnoughError(Exception):
    """Raised to stop a run at a given point."""


@dataclass(frozen=True)
class Result:
    """Result of a strategy with one seed; ``cost`` is the number of samples in full runs."""

    strategy: str
    seed: int
    cost: float
    accuracy: float
    reports: list[Report]

    @property
    def reference_loss(self) -> float:
        return float(self.reports[-1]["reference_loss"])

    @property
    def course(self) -> str:
        """The batch sizes of the run and the samples with each, in thousands."""
        at, parts = 0, []
        for size, group in groupby(self.reports, key=lambda report: report["batch_size"]):
            until = list(group)[-1]["samples_seen"]
            parts.append(f"{size}: {(until - at) / 1000:.1f}k")
            at = until
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON, with decisions separate from reports."""
        names = ("samples_seen", "seconds", "batch_size", "accumulation", "reference_loss", "train_loss")
        return {
            "strategy": self.strategy,
            "seed": self.seed,
            "cost": self.cost,
            "probe_accuracy": self.accuracy,
            "reports": [{name: report[name] for name in names} for report in self.reports],
            "decisions": [report["decision"] for report in self.reports if "decision" in report],
        }


class Segments:
    """Trains segments of runs and keeps the checkpoints at which strategies branch off."""

    def __init__(self, options: argparse.Namespace, seed: int, folder: Path) -> None:
        from adaptive_ray.config.dataset import DatasetSettings
        from adaptive_ray.datasets.dataset import load_dataset

        settings = DatasetSettings(
            name=options.dataset, root=options.root, limit=options.images, reference_images=512, download=False
        )
        self.data = load_dataset(settings, seed)
        self.budget = round(options.epochs * len(self.data.labels))
        self.settings = run_settings(options, options.dataset, seed, "sqrt", self.budget)
        self.folder = folder

    def train(
        self, name: str, first: int, start: Path | None, until: float, marks: Sequence[float] = (), **more: Any
    ) -> tuple[list[Report], Any]:
        """Trains from a checkpoint to a fraction of the budget; returns the reports and, at the end, the encoder."""
        from trainables.training.loop import train

        reports: list[Report] = []

        def take(metrics: Report, checkpoint: str | None = None) -> None:
            assert checkpoint is not None
            before = reports[-1]["samples_seen"] if reports else 0
            reports.append(metrics)
            for mark in {*marks, until}:
                if before < mark * self.budget <= metrics["samples_seen"]:
                    shutil.copytree(checkpoint, self.checkpoint(name, mark))
            if until < 1 and metrics["samples_seen"] >= until * self.budget:
                raise EnoughError

        try:
            settings = {**self.settings, "batch_size": first, **more}
            return reports, train(settings, self.data.training, take, resume_from=start)
        except EnoughError:
            return reports, None

    def checkpoint(self, name: str, mark: float) -> Path:
        return self.folder / f"{name}-{mark}"

    def accuracy(self, encoder: Any) -> float:
        import torch

        from trainables.evaluation.probe import probe

        def features(images: Any) -> Any:
            return encoder.embed(torch.from_numpy(images)).numpy()

        data = self.data
        return probe(features(data.training.images), data.labels, features(data.test_images), data.test_labels).linear


def race(
    curves: dict[int, list[Report]], budget: float, start: float = 0.0
) -> tuple[int, dict[int, tuple[float, float]], float]:
    """Returns the winner of a race with these reports, all log rates, and the samples of the losers."""
    series = Race(
        curves, budget=budget, window=WINDOW * budget, start=start, forecaster=JointForecaster(head_start=start)
    )
    spent = dict.fromkeys(curves, 0.0)
    reports = [(r["samples_seen"], size, r["reference_loss"]) for size, curve in curves.items() for r in curve]
    for samples, size, loss in sorted(reports):
        if not series.over and series.state(size) is State.RACING:
            series.report(size, samples, loss)
            spent[size] = samples - start
    winner = series.winner
    assert isinstance(winner, int)
    rates = {size: d.log_rate for size, d in zip(curves, series.standings(), strict=True) if d.log_rate is not None}
    return winner, rates, sum(spent.values()) - spent[winner]


def strategies(options: argparse.Namespace, seed: int) -> list[Result]:
    """Runs every strategy with one seed."""
    import torch

    torch.set_num_threads(1)
    sizes: list[int] = options.batch_sizes
    results = []
    with tempfile.TemporaryDirectory() as folder:
        segments = Segments(options, seed, Path(folder))
        budget = segments.budget

        def add(strategy: str, reports: list[Report], encoder: Any, explored: float) -> None:
            results.append(Result(strategy, seed, 1 + explored / budget, segments.accuracy(encoder), reports))

        fixed = {size: segments.train(f"fixed{size}", size, None, 1.0, (WINDOW, AGAIN)) for size in sizes}
        for size, (reports, encoder) in fixed.items():
            add(f"fixed {size}", reports, encoder, 0.0)

        winner, rates, explored = race({size: fixed[size][0] for size in sizes}, budget)
        add("race", *fixed[winner], explored)

        begun = [report for report in fixed[winner][0] if report["samples_seen"] < AGAIN * budget]
        begun.append(fixed[winner][0][len(begun)])
        fork = float(begun[-1]["samples_seen"])
        start = segments.checkpoint(f"fixed{winner}", AGAIN)
        forks = {size: segments.train(f"fork{size}", size, start, AGAIN + WINDOW)[0] for size in sizes}
        again, _, spent = race(forks, budget, fork)
        rest, encoder = segments.train("rest", again, segments.checkpoint(f"fork{again}", AGAIN + WINDOW), 1.0)
        add(f"race, again at {AGAIN:.0%}", [*begun, *forks[again], *rest], encoder, explored + spent)

        candidates = [{"batch_size": size, "accumulation": 1} for size in sizes]
        begun = [report for report in begun if report["samples_seen"] < WINDOW * budget]
        begun.append(fixed[winner][0][len(begun)])
        swap = {"mode": "deviation", "candidates": candidates, "rates": {str(key): rate for key, rate in rates.items()}}
        rest, encoder = segments.train("swap", winner, segments.checkpoint(f"fixed{winner}", WINDOW), 1.0, swap=swap)
        add("race, swaps on deviation", [*begun, *rest], encoder, explored)

        turns = {"mode": "rotate", "candidates": candidates, "turn": max(budget // (10 * len(sizes)), 1)}
        add("rotate", *segments.train("rotate", sizes[0], None, 1.0, swap=turns), 0.0)
    return results


def table(results: Sequence[Result], options: argparse.Namespace) -> Table:
    seeds = sorted({result.seed for result in results})
    made = Table(
        title=f"{options.dataset}, {options.images:,} images, {options.epochs:g} epochs, {len(seeds)} seeds",
        caption="mean and standard deviation over seeds",
    )
    for title in ("strategy", "samples, full runs", "reference loss", "probe, %"):
        made.add_column(title, justify="left" if title == "strategy" else "right")
    for name in dict.fromkeys(result.strategy for result in results):
        own = [result for result in results if result.strategy == name]
        columns = [[r.cost for r in own], [r.reference_loss for r in own], [100 * r.accuracy for r in own]]
        made.add_row(
            name,
            *(
                f"{np.mean(column):.{digits}f}" + (f" ± {np.std(column, ddof=1):.{digits}f}" if len(own) > 1 else "")
                for column, digits in zip(columns, (2, 3, 1), strict=True)
            ),
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="directory of CIFAR-10 in torchvision's layout")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 128, 512])
    parser.add_argument("--images", type=int, default=3_488)
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--depth", type=int, default=1, help="residual blocks per stage")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="for a batch size of 256")
    parser.add_argument("--out", type=Path, help="JSON file with the reports and decisions of every run")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    os.environ.update(KEEP_MEMORY)
    console, results = Console(), []
    context = multiprocessing.get_context("spawn")
    with (
        console.status("training") as status,
        ProcessPoolExecutor(min(options.processes, len(options.seeds)), mp_context=context) as pool,
    ):
        for future in as_completed([pool.submit(strategies, options, seed) for seed in options.seeds]):
            results += future.result()
            status.update(f"training: {len({result.seed for result in results})} of {len(options.seeds)} seeds done")
    if options.out is not None:
        options.out.write_text(json.dumps([result.as_dict() for result in results]) + "\n")
    console.print(table(results, options))
    for result in sorted(results, key=lambda result: result.seed):
        if "fixed" not in result.strategy:
            console.print(f"seed {result.seed}, {result.strategy}: {result.course}")


if __name__ == "__main__":
    main()
