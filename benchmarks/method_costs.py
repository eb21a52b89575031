"""Measures the time of batch scores and sample weights relative to a training step.

    python benchmarks/method_costs.py                              # small ResNet, 32 x 32 pixels, B = 256
    python benchmarks/method_costs.py --backbone resnet18 --batch-size 512

Goals: a score under 2 % of a step, weights within a batch under 5 %.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from trainables.batches import SampleStream, batch_score
from trainables.data import TrainingData
from trainables.settings import TrainSettings, WeightSettings
from trainables.training.run import Run
from trainables.training.sample_weights import SampleWeights

#: Size of the synthetic data set.
IMAGES, CLUSTERS, DIMENSIONS = 50_000, 20, 16


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="cifar_resnet")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--projections", type=int, default=128, help="dimensions of the loss")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = np.random.default_rng(0)
    strata = generator.integers(0, CLUSTERS, IMAGES)
    features = (4 * generator.normal(size=(CLUSTERS, DIMENSIONS)))[strata] + generator.normal(size=(IMAGES, DIMENSIONS))
    data = TrainingData(
        images=generator.integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8),
        reference=np.zeros((2, 3, 32, 32), np.uint8),
        strata=strata,
        features=features.astype(np.float32),
        centrality=generator.random(IMAGES).astype(np.float32),
    )
    encoder: dict[str, Any] = {"backbone": options.backbone, "projection_features": options.projections}
    settings = {"encoder": encoder, "batch_size": options.batch_size, "budget": 10**9, "evaluate_every": 10**9}
    run = Run(TrainSettings.model_validate(settings), data, device)

    def steps() -> None:
        run.train_until(run.state.samples + options.batch_size)  # ends with a read from the device

    step = seconds(steps, options.steps, device)
    stream, views = SampleStream(IMAGES, 0), torch.randn(2, options.batch_size, options.projections, device=device)
    indices = stream.take(0, options.batch_size)
    rows: list[tuple[str, float, float]] = []
    for name in ("histogram", "frechet", "mmd"):
        score = batch_score(name, strata, data.features, 0)  # type: ignore[arg-type]
        rows.append((f"score {name}", seconds(lambda: score(indices), 200, device), 0.02))  # noqa: B023
    for chosen in ({"mode": "static"}, {"mode": "batch"}, {"mode": "batch", "centres": "strata"}):
        weigh = SampleWeights(WeightSettings.model_validate(chosen), data, device)
        shares = [options.batch_size]
        cost = seconds(lambda: weigh(*views, indices, 0.2, shares), 200, device)  # noqa: B023
        rows.append((f"weights, {' '.join(chosen.values())}", cost, 0.05))

    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    made = Table(title=f"{options.backbone}, B = {options.batch_size}: a step takes {1e3 * step:.1f} ms ({where})")
    for title in ("", "microseconds", "of a step", "goal"):
        made.add_column(title, justify="left" if not title else "right")
    for title, cost, goal in rows:
        made.add_row(title, f"{1e6 * cost:.0f}", f"{100 * cost / step:.2f} %", f"{100 * goal:.0f} %")
    Console(width=110).print(made)


def seconds(call: Callable[[], Any], times: int, device: torch.device) -> float:
    """Returns the median time of single calls after two warm-up calls."""
    taken = []
    for _ in range(times + 2):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


if __name__ == "__main__":
    main()
