"""SimCLR alone, with each of the five methods, and with all: at equal samples and at equal seconds on CIFAR-10.

    python benchmarks/methods.py --root data                                   # three seeds, one process per core
    python benchmarks/methods.py --root data --seeds 0 --images 512 --epochs 1 # a smoke test

Seconds are CPU seconds of one thread (on a GPU, wall seconds): candidates that lose a race are in them, and cached
gradients' second forward. Embedding and clustering, once for a data set, are shown apart. At equal seconds a run that
took more has its budget cut by as much, schedules included, and is trained again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from record_curves import run_settings
from rich.console import Console
from rich.table import Table
from sampling import chosen

from adaptive_ray.config.clusters import AlphaM
from schedulers import Race
from trainables.training.memory_limits import KEEP_MEMORY

#: Window of a race, as a fraction of the budget.
WINDOW = 0.2
#: Cost ratio below which costs are considered equal.
EQUAL = 1.03
STATIC, BATCH = {"mode": "static", "strength": 0.5}, {"mode": "batch", "strength": 0.5}

Row = dict[str, Any]


class Variant(NamedTuple):
    """One way to train.

    Args:
        name: Name in the table.
        times: Candidates in units of alpha M, or batch sizes above 16; None: the common batch size.
        stratified: Whether batches are stratified.
        settings: Additional ``TrainSettings``.
    """

    name: str
    times: tuple[float, ...] | None = None
    stratified: bool = False
    settings: Mapping[str, Any] = MappingProxyType({})


def variants(options: argparse.Namespace) -> list[Variant]:
    """Returns the compared variants. Updates of adaptive accumulation have the same mean number of images."""
    size = options.batch_size
    informed = {"until": "information", "alpha": "auto", "images_per_update": size}
    half = (size // 2,)
    return [
        Variant("SimCLR alone"),
        Variant("1 batch size alpha M", (1,)),
        Variant("2 stratified", stratified=True),
        Variant("3 race", (size // 2, size, 2 * size)),
        Variant("4 informed", half, settings={"information": informed}),
        Variant("4 informed, shared negatives", half, settings={"information": {**informed, "negatives": "shared"}}),
        Variant("5 weights, static", settings={"sample_weights": STATIC}),
        Variant("5 weights, batch", settings={"sample_weights": BATCH}),
        Variant(
            "all", (0.5, 1), True, {"information": {"until": "information", "alpha": 1.8}, "sample_weights": STATIC}
        ),
    ]


class EnoughError(Exception):
    """Raised to stop a run at a given point."""


class Bench:
    """Images of one seed, and runs on them."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        from torchvision.datasets import CIFAR10

        from adaptive_ray.clusters import count_clusters, encode

        training, self.test = (CIFAR10(str(options.root), train=part, download=False) for part in (True, False))
        self.labels = np.array(training.targets)
        own, reference, self.probed = chosen(self.labels, "even", options.images, seed)
        self.images, self.seed, self.options = training.data, seed, options
        started = time.perf_counter()
        features = encode(training.data[own], options.encoder)
        self.found = count_clusters(features, seed=seed)
        self.clustering = time.perf_counter() - started
        self.own, self.held_out = (channels_first(training.data[rows]) for rows in (own, reference))

    def run(self, variant: Variant, budget: int) -> Row:
        """Trains a variant and evaluates it."""
        from trainables.batches import stratified_order
        from trainables.data import TrainingData
        from trainables.evaluation.probe import probe
        from trainables.training.loop import train

        order = partial(stratified_order, self.found.labels, self.seed)
        data = TrainingData(
            images=self.own,
            reference=self.held_out,
            epoch_order=order if variant.stratified else None,
            strata=self.found.labels,
            centrality=self.found.centrality,
        )
        settings = {**run_settings(self.options, "cifar10", self.seed, "sqrt", budget), **variant.settings}
        started = clock()
        sizes, reports = self._sizes(variant), []
        start, size = None, sizes[0]
        with tempfile.TemporaryDirectory() as folder:
            if len(sizes) > 1:
                curves = {b: self._begun(train, settings, data, b, Path(folder) / str(b)) for b in sizes}
                size = winner_of(curves, budget)
                start, reports = Path(folder) / str(size), curves[size]
            settings["batch_size"] = size
            encoder = train(settings, data, lambda metrics, checkpoint=None: reports.append(metrics), start)
        seconds = clock() - started
        features = [encoder.embed(as_tensor(d)).numpy() for d in (self.images[self.probed], self.test.data)]
        scores = probe(features[0], self.labels[self.probed], features[1], np.array(self.test.targets))
        return {
            "variant": variant.name,
            "seed": self.seed,
            "batch_size": size,
            "samples": reports[-1]["samples_seen"],
            "updates": updates_of(reports),
            "seconds": seconds,
            "clustering": self.clustering,
            "m": self.found.m,
            "probe": scores.linear,
            "reference_loss": float(reports[-1]["reference_loss"]),
        }

    def _sizes(self, variant: Variant) -> list[int]:
        times = variant.times or (self.options.batch_size,)
        named = [int(t) if t > 16 else AlphaM().batch_size(self.found.m, t) for t in times]
        return list(dict.fromkeys(named))

    def _begun(self, train: Any, settings: Row, data: Any, size: int, folder: Path) -> list[Row]:
        """Returns a candidate's reports within the race's window; its last checkpoint is written to ``folder``."""
        reports: list[Row] = []

        def take(metrics: Row, checkpoint: str | None = None) -> None:
            reports.append(metrics)
            if metrics["samples_seen"] >= WINDOW * settings["budget"]:
                shutil.copytree(str(checkpoint), folder)
                raise EnoughError

        with suppress(EnoughError):
            train({**settings, "batch_size": size}, data, take)
        return reports


def clock() -> float:
    """Returns the CPU seconds of this process; on a GPU, wall-clock seconds."""
    import torch

    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def channels_first(images: np.ndarray) -> np.ndarray:
    """NHWC -> NCHW."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def as_tensor(images: np.ndarray) -> Any:
    """uint8 NHWC -> a tensor NCHW."""
    import torch

    return torch.from_numpy(channels_first(images))


def winner_of(curves: dict[int, list[Row]], budget: int) -> int:
    """Returns the batch size that a race with these reports chooses."""
    race = Race(list(curves), budget=budget, window=WINDOW * budget, prune_below=0)
    for samples, size, loss in sorted(
        (r["samples_seen"], b, r["reference_loss"]) for b, c in curves.items() for r in c
    ):
        if not race.over:
            race.report(size, samples, loss)
    for size in curves:
        if not race.over:
            race.complete(size)
    assert isinstance(race.winner, int)
    return race.winner


def updates_of(reports: Sequence[Row]) -> int:
    """Returns the number of optimizer steps of a run."""
    seen = [0, *(report["samples_seen"] for report in reports)]
    return round(sum((b - a) / r["images_per_update"] for a, b, r in zip(seen, seen[1:], reports, strict=False)))


def compare(options: argparse.Namespace, seed: int) -> list[Row]:
    """Runs all variants with one seed at equal samples, and slower ones again at equal seconds."""
    import torch

    torch.set_num_threads(1)
    bench, rows = Bench(options, seed), []
    budget = round(options.epochs * options.images)
    for variant in variants(options):
        row = bench.run(variant, budget)
        rows.append(row)
        ratio = row["seconds"] / rows[0]["seconds"]
        again = row
        if ratio > EQUAL:
            again = bench.run(variant, round(budget / ratio))
        row["equal_seconds"] = {name: again[name] for name in ("probe", "seconds", "updates", "reference_loss")}
        print(f"seed {seed} {variant.name}: {row['probe']:.3f} {again['probe']:.3f}", flush=True)
    return rows


def table(rows: Sequence[Row], options: argparse.Namespace) -> Table:
    """Returns a table of means and standard deviations over seeds."""
    seeds = {row["seed"] for row in rows}
    title = f"CIFAR-10, {options.images:,} images, {options.epochs:g} epochs, B = {options.batch_size}"
    spent = np.mean([row["clustering"] for row in rows])
    made = Table(
        title=f"{title}, {len(seeds)} seeds",
        caption=f"embedding and clustering take another {spent:.0f} s in variants that need clusters",
    )
    headings = (
        "probe, %", "gain by seed", "reference loss", "updates", "CPU s",
        "probe at equal s, %", "gain by seed",
    )  # fmt: skip
    made.add_column("method")
    for heading in headings:
        made.add_column(heading, justify="right")
    alone = {row["seed"]: row for row in rows if row["variant"] == "SimCLR alone"}

    def spread(values: Sequence[float], digits: int) -> str:
        deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{deviation}"

    def above(own: Sequence[Row], probe: Any) -> str:
        return ", ".join(f"{100 * (probe(row) - alone[row['seed']]['probe']):+.1f}" for row in own)

    for variant in variants(options):
        own = [row for row in rows if row["variant"] == variant.name]
        if own:
            sizes = sorted({row["batch_size"] for row in own})
            made.add_row(
                f"{variant.name} (B = {', '.join(map(str, sizes))})",
                spread([100 * row["probe"] for row in own], 1),
                above(own, lambda row: row["probe"]),
                spread([row["reference_loss"] for row in own], 3),
                f"{np.mean([row['updates'] for row in own]):.0f}",
                f"{np.mean([row['seconds'] for row in own]):.0f}",
                spread([100 * row["equal_seconds"]["probe"] for row in own], 1),
                above(own, lambda row: row["equal_seconds"]["probe"]),
            )
    return made


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="directory of CIFAR-10 in torchvision's layout")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2_500)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument(
        "--batch-size",
        type=int,
        default=128,
        help="images per update; a race also has half and twice this size",
    )
    parser.add_argument("--encoder", default="efficientnet_lite0", help="encoder of the features that are clustered")
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--depth", type=int, default=1, help="residual blocks per stage")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="for a batch size of 256")
    parser.add_argument("--out", type=Path, help="JSON file with a row for every run")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    os.environ.update(KEEP_MEMORY)
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        for future in as_completed(pool.submit(compare, options, seed) for seed in options.seeds):
            rows += future.result()
            if options.out is not None:
                options.out.write_text(json.dumps(rows, indent=1) + "\n")
    rows.sort(key=lambda row: row["seed"])
    Console(width=170).print(table(rows, options))


if __name__ == "__main__":
    main()
