"""Records runs with fixed batch sizes, on which policies can be replayed; one JSON file per run.

    python benchmarks/record_curves.py --root data            # all, one process per core; resumes if interrupted
    python benchmarks/record_curves.py --datasets mnist5k --epochs 1 --images 1024 --out /tmp/curves   # a smoke test

Every file contains the curve of one run and the accuracy of its linear probe:
``{"dataset", "batch_size", "accumulation", "seed", "learning_rate_rule", "samples", "seconds", "train_loss",
"reference_loss", "probe_accuracy"}``. Runs with equal data set, rule and seed are one sweep: they start from the same
weights and see the same images in the same order.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainables.training.memory_limits import KEEP_MEMORY

#: Held-out images of the reference loss.
REFERENCE = 512


class Recording(NamedTuple):
    """One run to record."""

    dataset: str
    rule: str
    seed: int
    batch_size: int

    @property
    def file(self) -> Path:
        return Path(self.dataset) / f"{self.rule}-seed{self.seed}-batch{self.batch_size}.json"


def run_settings(options: argparse.Namespace, dataset: str, seed: int, rule: str, budget: int) -> dict[str, Any]:
    """Returns ``TrainSettings`` without the batch size."""
    return {
        "budget": budget,
        "evaluate_every": budget // options.evaluations,
        "seed": seed,
        "augment": "digits" if dataset == "mnist5k" else "natural",
        "temperature": 0.2,
        "encoder": {"depth": options.depth},
        "optimizer": {"name": "adamw", "learning_rate": options.learning_rate, "lr_scaling": rule},
    }


def record(recording: Recording, options: argparse.Namespace) -> Path:
    """Trains and evaluates one run, and writes its file when it is complete."""
    import torch

    from adaptive_ray.config.dataset import DatasetSettings
    from adaptive_ray.datasets.dataset import load_dataset
    from trainables.evaluation.probe import probe
    from trainables.training.loop import train

    torch.set_num_threads(1)
    data = load_dataset(
        DatasetSettings(
            name=recording.dataset, root=options.root, limit=options.images, reference_images=REFERENCE, download=False
        ),
        recording.seed,
    )
    budget = round(options.epochs * len(data.labels))
    settings = {
        "batch_size": recording.batch_size,
        **run_settings(options, recording.dataset, recording.seed, recording.rule, budget),
    }
    reports: list[dict[str, Any]] = []
    encoder = train(settings, data.training, lambda metrics, checkpoint=None: reports.append(metrics))

    def features(images: Any) -> Any:
        return encoder.embed(torch.from_numpy(images)).numpy()

    scores = probe(features(data.training.images), data.labels, features(data.test_images), data.test_labels)
    content = {
        "dataset": recording.dataset,
        "batch_size": recording.batch_size,
        "accumulation": 1,
        "seed": recording.seed,
        "learning_rate_rule": recording.rule,
        "samples": [report["samples_seen"] for report in reports],
        "seconds": [round(report["seconds"], 3) for report in reports],
        "train_loss": [round(report["train_loss"], 5) for report in reports],
        "reference_loss": [round(report["reference_loss"], 5) for report in reports],
        "probe_accuracy": round(scores.linear, 5),
        "settings": {**settings, "images": len(data.labels), "reference": REFERENCE},
    }
    file: Path = options.out / recording.file
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(content) + "\n")
    unfinished.rename(file)  # files are complete; an interrupted run starts from the beginning
    return file


def wanted(options: argparse.Namespace) -> Iterator[Recording]:
    """Returns the runs without a file, ordered so that sweeps are completed one by one."""
    for seed, dataset, rule in itertools.product(options.seeds, options.datasets, options.rules):
        for batch_size in options.batch_sizes:
            recording = Recording(dataset, rule, seed, batch_size)
            if not (options.out / recording.file).exists():
                yield recording


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "curves")
    parser.add_argument("--root", type=Path, default=Path("data"), help="directory of CIFAR-10 in torchvision's layout")
    parser.add_argument("--datasets", nargs="+", default=["cifar10", "mnist5k"])
    parser.add_argument("--rules", nargs="+", default=["sqrt", "none"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 64, 128, 256, 512])
    parser.add_argument("--images", type=int, default=3_488, help="training images; default: all of mnist5k's")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--evaluations", type=int, default=120, help="reports per run; default: 12 in a tenth of it")
    parser.add_argument("--depth", type=int, default=1, help="residual blocks per stage")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="for a batch size of 256")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    todo = list(wanted(options))
    os.environ.update(KEEP_MEMORY)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, TimeRemainingColumn(), console=Console()) as progress,
        ProcessPoolExecutor(options.processes, mp_context=context) as pool,
    ):
        task = progress.add_task("recording", total=len(todo))
        for future in as_completed([pool.submit(record, recording, options) for recording in todo]):
            progress.update(task, advance=1, description=str(future.result().relative_to(options.out)))


if __name__ == "__main__":
    main()
