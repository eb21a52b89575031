"""Seconds of the final evaluation: features, k nearest neighbours and a linear classifier, beside scikit-learn's.

    python benchmarks/evaluation.py                      # 10,000 + 2,000 images on a CPU; 50,000 + 10,000 on a GPU
    python benchmarks/evaluation.py --train 2000 --test 500 --no-sklearn

The network has random weights: a ResNet-18 on a GPU, ResNet 16-32-64 on a CPU. Its
features say little about random images, so the classifiers get as many made-up features of ten classes, which they
separate about as well as SimCLR's. Both sides get the same features; scikit-learn computes on the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from trainables.evaluation.knn import knn_accuracies
from trainables.evaluation.linear import linear_accuracy
from trainables.settings import EncoderSettings
from trainables.simclr import build_encoder

CLASSES = 10


def made_up(count: int, features: int, generator: np.random.Generator, means: Any) -> tuple[Any, Any]:
    """Features [count, features], not negative as those of a ResNet, and their labels."""
    labels = generator.integers(0, CLASSES, count)
    rows = 0.2 * means[labels] + generator.standard_normal((count, features))
    return np.maximum(rows, 0).astype(np.float32), labels


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Returns the seconds of ``work``, which reads its result from the device, and the result."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=50_000 if gpu else 10_000)
    parser.add_argument("--test", type=int, default=10_000 if gpu else 2_000)
    parser.add_argument("--backbone", default="resnet18" if gpu else "cifar_resnet")
    parser.add_argument("--no-sklearn", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if gpu else "cpu")

    generator = np.random.default_rng(0)
    encoder = build_encoder(EncoderSettings(backbone=options.backbone), 3, image_size=32).eval()
    encoder.to(device, memory_format=torch.channels_last)
    images = generator.integers(0, 256, (options.train + options.test, 3, 32, 32), dtype=np.uint8)
    encoder.embed(images[:512])  # CUDA's libraries
    seconds, _ = timed(lambda: encoder.embed(images), device)
    rows = [("features", f"{seconds:.2f}", "", "", "")]

    means = generator.standard_normal((CLASSES, 512))
    train, labels = made_up(options.train, 512, generator, means)
    test, expected = made_up(options.test, 512, generator, means)
    values = [torch.tensor(array, device=device) for array in (train, labels, test, expected)]
    ours: dict[str, Callable[[], float]] = {
        "kNN, k = 20": lambda: knn_accuracies(*values[:4], protocols=("knn",))["knn"].top1,
        "kNN, k = 20 and k = 200": lambda: knn_accuracies(*values[:4])["knn200"].top1,
        "linear classifier": lambda: linear_accuracy(*values[:4]).top1,
    }
    theirs = {
        "kNN, k = 20": make_pipeline(Normalizer(), KNeighborsClassifier(20, weights="distance")),
        "linear classifier": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    }
    for name, work in ours.items():
        seconds, accuracy = timed(work, device)
        row = [name, f"{seconds:.2f}", f"{100 * accuracy:.2f}", "", ""]
        if name in theirs and not options.no_sklearn:
            classifier = theirs[name]
            seconds, accuracy = timed(lambda: classifier.fit(train, labels).score(test, expected), device)  # noqa: B023
            row[3:] = [f"{seconds:.2f}", f"{100 * accuracy:.2f}"]
        rows.append(tuple(row))

    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
    table = Table(title=f"{options.train:,} + {options.test:,} images, {options.backbone}, {where}")
    for title in ("", "seconds", "accuracy, %", "scikit-learn: seconds", "accuracy, %"):
        table.add_column(title, justify="left" if not title else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
