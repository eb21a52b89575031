"""Compares shuffled, stratified, balanced and clustered batches on balanced and long-tailed CIFAR-10.

    python benchmarks/sampling.py --root data                                   # three seeds, one process per core
    python benchmarks/sampling.py --root data --seeds 0 --images 256 --epochs 1 # a smoke test

Clusters are computed from the training images only. The linear probe is trained on held-out images with balanced
classes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from record_curves import run_settings
from rich.console import Console
from rich.table import Table

from trainables.training.memory_limits import KEEP_MEMORY

#: Ratio of the largest to the smallest class.
RATIO = 100
DATA = ("even", "long-tailed")
SAMPLINGS = ("shuffle", "stratified", "balanced", "clustered")
#: Images that probes are trained on, and reference images.
PROBED, REFERENCE = 4_000, 512

Row = dict[str, Any]


def chosen(labels: np.ndarray, kind: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns disjoint indices of training images, reference images and probe images."""
    order = np.random.default_rng(seed).permutation(len(labels))
    probed, reference, rest = order[:PROBED], order[PROBED : PROBED + REFERENCE], order[PROBED + REFERENCE :]
    if kind == "even":
        return rest[:count], reference, probed
    classes = int(labels.max()) + 1
    share = RATIO ** -(np.arange(classes) / (classes - 1))
    sizes = np.round(count * share / share.sum()).astype(int)
    own = np.concatenate([rest[labels[rest] == c][:size] for c, size in enumerate(sizes)])
    return np.sort(own), reference, probed


def compare(options: argparse.Namespace, kind: str, seed: int) -> list[Row]:
    """Runs all samplings on one selection of images."""
    import torch
    from torchvision.datasets import CIFAR10

    from adaptive_ray.clusters import count_clusters, encode
    from trainables.batches import CLUSTER_ORDERS
    from trainables.data import TrainingData
    from trainables.evaluation.probe import probe
    from trainables.training.loop import train

    torch.set_num_threads(1)
    training, test = (CIFAR10(str(options.root), train=part, download=False) for part in (True, False))
    labels = np.array(training.targets)
    own, reference, probed = chosen(labels, kind, options.images, seed)
    found = count_clusters(encode(training.data[own], options.encoder), seed=seed)

    def channels_first(images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))

    images, held_out = channels_first(training.data[own]), channels_first(training.data[reference])
    budget = round(options.epochs * len(own))
    rows = []
    for sampling in SAMPLINGS:
        order = None if sampling == "shuffle" else partial(CLUSTER_ORDERS[sampling], found.labels, seed)
        reports: list[Row] = []
        encoder = train(
            {**run_settings(options, "cifar10", seed, "sqrt", budget), "batch_size": options.batch_size},
            TrainingData(images=images, reference=held_out, epoch_order=order),
            lambda metrics, checkpoint=None, kept=reports: kept.append(metrics),
        )
        features = [encoder.embed(torch.from_numpy(channels_first(d))) for d in (training.data[probed], test.data)]
        scores = probe(features[0].numpy(), labels[probed], features[1].numpy(), np.array(test.targets))
        last = reports[-1]
        losses = {name: float(last[name]) for name in ("reference_loss", "train_loss")}
        rows.append({"data": kind, "seed": seed, "sampling": sampling, "m": found.m, "probe": scores.linear, **losses})
    return rows


def table(rows: Sequence[Row], options: argparse.Namespace) -> Table:
    """Returns a table of means and standard deviations over seeds."""
    seeds = {row["seed"] for row in rows}
    title = f"CIFAR-10, {options.images:,} images, {options.epochs:g} epochs, B = {options.batch_size}"
    made = Table(title=f"{title}, {len(seeds)} seeds")
    for title in ("data", "batches", "probe, %", "gain over shuffle by seed", "reference loss", "training loss", "M"):
        made.add_column(title, justify="left" if title in ("data", "batches") else "right")
    for kind in DATA:
        shuffled = {row["seed"]: row["probe"] for row in rows if row["data"] == kind and row["sampling"] == "shuffle"}
        for sampling in SAMPLINGS:
            own = [row for row in rows if (row["data"], row["sampling"]) == (kind, sampling)]
            if own:
                gains = ", ".join(f"{100 * (row['probe'] - shuffled[row['seed']]):+.1f}" for row in own)
                modes = ", ".join(str(row["m"]) for row in own)
                columns = [
                    [100 * row["probe"] for row in own],
                    *([r[n] for r in own] for n in ("reference_loss", "train_loss")),
                ]
                shown = [
                    f"{np.mean(column):.{digits}f}"
                    + (f" ± {np.std(column, ddof=1):.{digits}f}" if len(own) > 1 else "")
                    for column, digits in zip(columns, (1, 3, 3), strict=True)
                ]
                made.add_row(kind, sampling, shown[0], gains, *shown[1:], modes)
    return made


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="directory of CIFAR-10 in torchvision's layout")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2_500)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--depth", type=int, default=1, help="residual blocks per stage")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="for a batch size of 256")
    parser.add_argument("--out", type=Path, help="JSON file with a row for every run")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    os.environ.update(KEEP_MEMORY)
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        for future in as_completed(pool.submit(compare, options, kind, s) for s in options.seeds for kind in DATA):
            rows += sorted(future.result(), key=lambda row: row["seed"])
            print(
                *(f"{row['data']} {row['seed']} {row['sampling']}: {row['probe']:.3f}" for row in rows[-4:]),
                sep="\n",
                flush=True,
            )
    rows.sort(key=lambda row: row["seed"])
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    Console(width=150).print(table(rows, options))


if __name__ == "__main__":
    main()
