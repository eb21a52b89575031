"""Measures the time of a swap of the batch size during a run, relative to a training step.

    python benchmarks/swap_cost.py                             # small ResNet, 32 x 32 pixels
    python benchmarks/swap_cost.py --backbone resnet18 --batch-sizes 256 512 1024

A run swaps to each of its candidates in turn. The cost of a swap is the time to change the candidate plus the
additional time of the next step. The first use of a shape also allocates memory and selects kernels, once per run; the
goal applies to later swaps.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from trainables.training.memory_limits import KEEP_MEMORY


class Costs(NamedTuple):
    """Times of one candidate, in seconds."""

    step: float  # median of steps without a swap
    first: float  # of the first swap to it
    later: list[float]  # of later swaps
    change: float  # median of the change of the candidate itself


def measure(options: argparse.Namespace) -> tuple[str, dict[str, Costs]]:
    """Returns the device and the times of each candidate."""
    import numpy as np
    import torch

    from schedulers import Candidate
    from trainables.data import TrainingData
    from trainables.settings import TrainSettings
    from trainables.training.run import Run

    torch.set_num_threads(options.threads)
    candidates = [Candidate(size) for size in options.batch_sizes] + [Candidate(options.batch_sizes[0], 4)]
    entries = [{"batch_size": c.batch_size, "accumulation": c.accumulation} for c in candidates]
    encoder: dict[str, Any] = {"depth": 1} if options.backbone == "cifar_resnet" else {"backbone": options.backbone}
    settings = TrainSettings.model_validate(
        {
            "encoder": encoder,
            "batch_size": candidates[0].batch_size,
            "budget": 10**9,
            "evaluate_every": 10**9,
            "swap": {"candidates": entries},
        }
    )
    images = np.random.default_rng(0).integers(0, 256, (8192, 3, 32, 32), dtype=np.uint8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(settings, TrainingData(images[:-512], images[-512:]), device)

    def steps(count: int) -> float:
        """Returns the seconds of a step including a read from the device."""
        started = time.perf_counter()
        run.train_until(run.state.samples + count * run.state.candidate.images_per_update)
        return time.perf_counter() - started

    usual: dict[str, list[float]] = {c.key: [] for c in candidates}
    after: dict[str, list[float]] = {c.key: [] for c in candidates}
    changes: dict[str, list[float]] = {c.key: [] for c in candidates}
    for _ in range(1 + options.rounds):
        for candidate in candidates:
            started = time.perf_counter()
            run.state.swap_to(candidate)
            changes[candidate.key].append(time.perf_counter() - started)
            after[candidate.key].append(changes[candidate.key][-1] + steps(1))
            usual[candidate.key] += [steps(1) for _ in range(options.steps)]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    costs = {}
    for key, times in after.items():
        step = statistics.median(usual[key])
        first, *later = (seconds - step for seconds in times)
        costs[key] = Costs(step, first, later, statistics.median(changes[key]))
    return name, costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="cifar_resnet", help="or a network of torchvision")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--steps", type=int, default=4, help="steps between two swaps")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the first")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    os.environ.update(KEEP_MEMORY)  # as in workers of adaptive-ray
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        device, costs = pool.submit(measure, options).result()
    table = Table(title=f"Swaps on {device}, {options.backbone}, {options.rounds} rounds after the first")
    table.add_column("candidate")
    for title in (
        "step, ms",
        "first swap, ms",
        "later swap, ms",
        "lowest to highest",
        "change, ms",
        "of a step",
        "goal: < 1",
    ):
        table.add_column(title, justify="right")
    for key, cost in costs.items():
        later = statistics.median(cost.later)
        table.add_row(
            key,
            f"{1000 * cost.step:.1f}",
            f"{1000 * cost.first:.1f}",
            f"{1000 * later:.1f}",
            f"{1000 * min(cost.later):.1f} to {1000 * max(cost.later):.1f}",
            f"{1000 * cost.change:.3f}",
            f"{later / cost.step:.2f}",
            "[green]met[/]" if later < cost.step else "[red]missed[/]",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
