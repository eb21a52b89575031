"""Records sweeps over the batch size in different scenarios, with accuracy during training.

    python benchmarks/record_scenarios.py --root data --out benchmarks/scenarios          # resumes if interrupted
    python benchmarks/record_scenarios.py --scenarios digits --seeds 0 --sizes 256 --images 1024 --out /tmp/s   # a test

Each scenario fixes data, network, loss, optimizer and budget; a sweep is one scenario and seed at every batch size.
All runs of a sweep start from the same weights and see the same images in the same order. One line of
``OUT/SCENARIO.jsonl`` is one run: the recordings of ``record_curves.py`` and, beside them, ``learning_rate`` of each
report, and ``knn_samples`` with ``knn_accuracy``: 20 nearest neighbours by cosine, weighted by exp(similarity / 0.1)
(Wu et al. 2018), under averaged weights, over training images (at most 10,000) on at most 5,000 test images.
Several runs share a device, so ``seconds`` say nothing about a size's speed alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: Held-out images of the reference loss.
REFERENCE = 512
#: Measurements of the accuracy per run, evenly spaced over the budget.
KNN_POINTS = 12
#: Number of labelled images among which neighbours are searched.
BANK = 10_000
NEIGHBOURS, TEMPERATURE = 20, 0.1

_SIZES = (32, 64, 128, 256, 512, 1024, 2048)
_ADAMW = {"name": "adamw", "learning_rate": 0.002}


@dataclass(frozen=True)
class Scenario:
    """Settings that all runs of a sweep have in common.

    Args:
        dataset: Name of the data set; see ``load_dataset``.
        images: Training images.
        epochs: Budget.
        settings: ``TrainSettings`` in addition to the common ones.
        tail: Ratio of the largest class to the smallest in a long-tailed subset; 1: balanced.
        sizes: Batch sizes.
        seeds: Number of seeds.
        shrink: Factor by which width and height are divided; each pixel is the mean of a square.
        tested: Number of images that the kNN accuracy classifies.
    """

    dataset: str
    images: int
    epochs: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    tail: float = 1.0
    sizes: tuple[int, ...] = _SIZES
    seeds: int = 3
    shrink: int = 1
    tested: int = 5_000


def _small(depth: int = 1, width: int = 16) -> dict[str, Any]:
    return {"depth": depth, "width": width}


def _tiny(
    images: int,
    epochs: float,
    optimizer: tuple[str, float, str] = ("adamw", 0.002, "sqrt"),
    *,
    dataset: str = "cifar10",
    tail: float = 1.0,
    sizes: tuple[int, ...] = _SIZES[:5],
    **settings: Any,
) -> Scenario:
    """Returns a scenario for a CPU: 10 s per run on one core. ``optimizer``: name, learning rate and scaling rule."""
    name, rate, rule = optimizer
    settings |= {
        "augment": "natural" if dataset == "cifar10" else "digits",
        "encoder": _small(1, 8),
        "optimizer": {"name": name, "learning_rate": rate, "lr_scaling": rule},
    }
    return Scenario(dataset, images, epochs, settings, tail, sizes, seeds=2, shrink=2, tested=1_500)


SCENARIOS: dict[str, Scenario] = {
    "digits": Scenario("mnist5k", 3_488, 10, {"augment": "digits"}),
    "cifar-short": Scenario("cifar10", 4_096, 6),
    "cifar-20k": Scenario("cifar10", 20_000, 5),
    "cifar-full-3": Scenario("cifar10", 49_152, 3, seeds=2),
    "cifar-long": Scenario("cifar10", 4_096, 40, seeds=2),
    "cifar-dcl": Scenario("cifar10", 8_192, 8, {"loss": "dcl"}),
    "cifar-cold": Scenario("cifar10", 8_192, 8, {"temperature": 0.07}),
    "cifar-lars": Scenario(
        "cifar10", 8_192, 8,
        {"temperature": 0.5, "optimizer": {"name": "lars", "learning_rate": 0.5, "lr_scaling": "linear"}},
    ),
    "cifar-sgd-linear": Scenario(
        "cifar10", 8_192, 8,
        {"temperature": 0.5, "optimizer": {"name": "sgd", "learning_rate": 0.06, "lr_scaling": "linear"}},
    ),
    "cifar-hot-rate": Scenario(
        "cifar10", 8_192, 8, {"optimizer": {"name": "adamw", "learning_rate": 0.02, "lr_scaling": "none"}}
    ),
    "cifar-tail": Scenario("cifar10", 8_192, 10, tail=100.0),
    "cifar-wide": Scenario("cifar10", 10_000, 6, {"encoder": _small(2, 64)}, seeds=2),
    "fashion": Scenario("fashion_mnist", 10_000, 5),
    "fashion-tiny": Scenario("fashion_mnist", 1_000, 40, sizes=_SIZES[:-2]),
    "resnet18": Scenario(
        "cifar10", 10_000, 6,
        {"encoder": {"backbone": "resnet18", "projection_hidden": 512, "projection_features": 128},
         "optimizer": {"name": "adamw", "learning_rate": 0.001}},
        seeds=2,
    ),
    "tiny-hot": _tiny(2_048, 8, ("adamw", 0.03, "none")),
    "tiny-linear-low": _tiny(2_048, 8, ("adamw", 0.0003, "linear"), sizes=_SIZES[1:6]),
    "tiny-mnist-linear": _tiny(1_024, 10, ("adamw", 0.001, "linear"), dataset="mnist5k"),
    "tiny-warm-linear": _tiny(1_024, 10, ("adamw", 0.001, "linear"), temperature=0.5),
    "tiny-mnist-hot": _tiny(1_024, 10, ("adamw", 0.03, "none"), dataset="mnist5k"),
    "tiny-fashion": _tiny(1_024, 10, dataset="fashion_mnist"),
    "tiny": _tiny(1_024, 10),
    "tiny-lars": _tiny(1_024, 10, ("lars", 5.0, "none"), temperature=0.5),
    "tiny-long": _tiny(256, 40, dataset="mnist5k", sizes=(16, *_SIZES[:4])),
    "tiny-dcl-linear": _tiny(1_024, 10, ("adamw", 0.001, "linear"), loss="dcl", temperature=0.1),
    "tiny-cold": _tiny(1_024, 10, temperature=0.07, dataset="fashion_mnist"),
    "tiny-tail": _tiny(1_024, 10, tail=100.0),
}  # fmt: skip


def settings_of(scenario: Scenario, seed: int, batch_size: int, images: int, reports: int) -> dict[str, Any]:
    """Returns ``TrainSettings``."""
    budget = round(scenario.epochs * images)
    return {
        "batch_size": batch_size,
        "budget": budget,
        "evaluate_every": max(budget // reports, 1),
        "seed": seed,
        "temperature": 0.2,
        "encoder": _small(),
        "optimizer": _ADAMW,
        **scenario.settings,
    }


def shrunk(images: Any, factor: int) -> Any:
    """Returns uint8 images [n, C, H, W] whose pixels are the means of squares of ``factor`` x ``factor`` pixels."""
    n, channels, height, width = images.shape
    squares = images.reshape(n, channels, height // factor, factor, width // factor, factor)
    return np.ascontiguousarray(squares.mean((3, 5), dtype=np.float32).round().astype(np.uint8))


@functools.cache
def load(dataset: str, root: str, images: int, tail: float, shrink: int, seed: int) -> Any:
    """Returns images and labels of a data set; with ``tail``, class sizes decrease exponentially (Cui et al. 2019)."""
    from dataclasses import replace

    from adaptive_ray.datasets.dataset import DatasetSettings, load_dataset

    limit = None if tail > 1 else images
    data = load_dataset(
        DatasetSettings(name=dataset, root=root, limit=limit, reference_images=REFERENCE, download=False),  # type: ignore[arg-type]
        seed,
    )
    if tail > 1:
        classes = int(data.labels.max()) + 1
        shares = tail ** (-np.arange(classes) / (classes - 1))
        wanted = np.floor(images * shares / shares.sum()).astype(int)
        members = [np.flatnonzero(data.labels == label) for label in range(classes)]
        rows = np.sort(np.concatenate([own[:n] for own, n in zip(members, wanted, strict=True)]))
        kept = np.ascontiguousarray(data.training.images[rows])
        data = replace(data, training=replace(data.training, images=kept), labels=data.labels[rows])
    if shrink > 1:
        parts = (data.training.images, data.training.reference, data.test_images)
        kept, reference, tested = (shrunk(part, shrink) for part in parts)
        data = replace(data, training=replace(data.training, images=kept, reference=reference), test_images=tested)
    return data


def knn_accuracy(encoder: Any, data: Any, device: Any, tested: int) -> float:
    """Measures the kNN accuracy on ``tested`` images; see the module's docstring."""
    import torch
    import torch.nn.functional as F

    def embed(images: Any) -> Any:
        parts = [
            encoder(torch.tensor(images[i : i + 2_048], device=device).float() / 255)
            for i in range(0, len(images), 2_048)
        ]
        return F.normalize(torch.cat(parts).float())

    with torch.no_grad():
        bank, queries = embed(data.training.images[:BANK]), embed(data.test_images[:tested])
        labels = torch.tensor(data.labels[:BANK], device=device)
        expected = torch.tensor(data.test_labels[:tested], device=device)
        similar, nearest = (queries @ bank.T).topk(min(NEIGHBOURS, len(bank)))
        votes = torch.zeros(len(queries), int(labels.max()) + 1, device=device)
        votes.scatter_add_(1, labels[nearest], (similar / TEMPERATURE).exp())
        return float((votes.argmax(1) == expected).float().mean())


def record(name: str, seed: int, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one run and returns its recording."""
    import torch

    from trainables.settings import TrainSettings
    from trainables.training.loop import load_ema_encoder, train

    torch.set_num_threads(1)
    scenario = SCENARIOS[name]
    images = options.images or scenario.images
    data = load(scenario.dataset, str(options.root), images, scenario.tail, scenario.shrink, seed)
    settings = settings_of(scenario, seed, batch_size, len(data.labels), options.reports)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reports: list[dict[str, Any]] = []
    knn: list[tuple[int, float]] = []
    channels, size, _ = data.shape

    def report(metrics: dict[str, Any], checkpoint: str | None = None) -> None:
        reports.append(metrics)
        if metrics["samples_seen"] * KNN_POINTS >= (len(knn) + 1) * settings["budget"]:
            encoder = load_ema_encoder(TrainSettings.model_validate(settings), channels, size, str(checkpoint))
            knn.append(
                (metrics["samples_seen"], round(knn_accuracy(encoder.to(device), data, device, scenario.tested), 5))
            )

    started = time.perf_counter()
    train(settings, data.training, report, device=device)
    return {
        "scenario": name,
        "dataset": scenario.dataset,
        "batch_size": batch_size,
        "accumulation": 1,
        "seed": seed,
        "learning_rate_rule": settings["optimizer"].get("lr_scaling", "sqrt"),
        "samples": [report["samples_seen"] for report in reports],
        "seconds": [round(report["seconds"], 3) for report in reports],
        "learning_rate": [float(f"{report['learning_rate']:.5g}") for report in reports],
        "train_loss": [round(report["train_loss"], 5) for report in reports],
        "reference_loss": [round(report["reference_loss"], 5) for report in reports],
        "knn_samples": [samples for samples, _ in knn],
        "knn_accuracy": [accuracy for _, accuracy in knn],
        "images": len(data.labels),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "settings": {**settings, "device": device.type},
    }


def recorded(out: Path) -> set[tuple[str, int, int]]:
    """Returns scenario, seed and batch size of every recorded run."""
    lines = [line for file in sorted(out.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return {(run["scenario"], run["seed"], run["batch_size"]) for run in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "scenarios")
    parser.add_argument("--root", type=Path, default=Path("data"), help="directory of torchvision's data sets")
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: as in the scenario")
    parser.add_argument("--sizes", nargs="+", type=int, help="default: as in the scenario")
    parser.add_argument("--images", type=int, help="default: as in the scenario")
    parser.add_argument("--reports", type=int, default=60, help="reports per run")
    parser.add_argument("--limit", type=float, default=float("inf"), help="no run is started after this many seconds")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    done = recorded(options.out)
    everything = [
        (name, seed, size)
        for seed in options.seeds or range(max(s.seeds for s in SCENARIOS.values()))
        for name in options.scenarios
        for size in options.sizes or SCENARIOS[name].sizes
        if options.seeds or seed < SCENARIOS[name].seeds
    ]
    todo = [run for run in everything if run not in done]
    started = time.perf_counter()
    # Forked processes share the loaded data. CUDA is not initialised before.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        waiting = {pool.submit(_within, started, options, *run): run for run in todo}
        for future in as_completed(waiting):
            name, seed, size = waiting[future]
            try:
                run = future.result()
            except Exception as error:  # the other runs continue
                print(f"{name} seed {seed} batch {size} failed: {error!r}"[:300], flush=True)
                continue
            if run is None:
                continue
            with (options.out / f"{name}.jsonl").open("a") as file:
                file.write(json.dumps(run) + "\n")
            print(
                f"[{time.perf_counter() - started:.0f} s] {name} seed {seed} batch {size}: reference loss "
                f"{run['reference_loss'][-1]:.4f}, kNN {run['knn_accuracy'][-1]:.4f}, {run['wall_seconds']} s",
                flush=True,
            )


def _within(started: float, options: argparse.Namespace, *run: Any) -> dict[str, Any] | None:
    """Calls ``record`` unless the time limit has passed."""
    return record(*run, options) if time.perf_counter() - started < options.limit else None


if __name__ == "__main__":
    main()
