"""Compares batch sizes that grow during a run with fixed ones, at equal time by a model of throughputs.

    python benchmarks/growing.py --root data --out /tmp/growing.jsonl   # an hour on one core; resumes if interrupted
    python benchmarks/growing.py --root data --small --out /tmp/small.jsonl   # half a minute

The throughputs are those of ``adaptive_ray/replay/hardware.py`` (ResNet-18 on H200s, several GPUs by a model). Here,
only losses as a function of samples are measured, with a small network.

All runs of a seed start from the same weights and see the same images in the same order. Schedules end at the sample
at which the time is over. ``fork and keep`` (Merrill et al. 2025) trains from one state with B and with 2B for a
window, and keeps 2B if its loss is at most ``TOLERANCE`` above that with B; the time of both forks counts. With the
half-life in samples (Marek et al. 2025), AdamW's second beta is 0.999^(B/256).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record_scenarios
from rich.console import Console
from rich.table import Table

from adaptive_ray.replay.hardware import HARDWARE, Hardware
from schedulers import Candidate

#: Largest increase in reference loss with which a larger batch is kept, in nats.
TOLERANCE = 0.01
#: When forks start, and how long they take, as fractions of the time and of the samples.
FORKS, WINDOW = tuple(np.arange(1, 9) / 10), 0.03

#: Batch sizes, each with the fraction of the samples until which it is used.
Plan = tuple[tuple[int, float], ...]
SIZES = (64, 128, 256, 512, 768, 1024, 2048)
#: The first batch size of ``fork and keep``.
FORKED = {f"fork and keep, from {size}": size for size in (64, 512)}
PLANS: dict[str, Plan] = {
    **{f"fixed {size}": ((size, 1.0),) for size in SIZES},
    "128, then 1024 at 60 %": ((128, 0.6), (1024, 1.0)),
    "128, then 512 at 30 %": ((128, 0.3), (512, 1.0)),
    "256, then 1024 at 60 %": ((256, 0.6), (1024, 1.0)),
    "512, then 1024 at 60 %": ((512, 0.6), (1024, 1.0)),
    "1024, then 2048 at 60 %": ((1024, 0.6), (2048, 1.0)),
    "64, 128, 256, 512, a quarter each": ((64, 0.25), (128, 0.5), (256, 0.75), (512, 1.0)),
}


def samples_within(seconds: float, plan: Plan, hardware: Hardware) -> float:
    """Returns the samples for which a plan takes ``seconds``."""
    starts = (0.0, *(until for _, until in plan))
    shares = [until - start for start, (_, until) in zip(starts, plan, strict=False)]
    return seconds / sum(
        share / hardware.images_per_second(Candidate(size)) for share, (size, _) in zip(shares, plan, strict=True)
    )


def second_beta(batch_size: int, half_life: str) -> float:
    """Returns AdamW's second beta with a half-life fixed in ``steps`` or in ``samples``."""
    return float(0.999 ** (batch_size / 256)) if half_life == "samples" else 0.999


class Training:
    """A run whose batch size is changed from outside."""

    def __init__(self, data: Any, seed: int, half_life: str, options: argparse.Namespace) -> None:
        self.data, self.seed, self.half_life, self.options = data, seed, half_life, options

    def start(self, batch_size: int, budget: float) -> None:
        import torch

        from trainables.settings import TrainSettings
        from trainables.training.run import Run

        settings: dict[str, Any] = {
            "batch_size": batch_size, "budget": round(budget), "evaluate_every": round(budget), "seed": self.seed,
            "temperature": 0.2, "encoder": json.loads(self.options.encoder),
            "optimizer": {"name": "adamw", "learning_rate": 0.002},
            "micro_batch": max(SIZES),
        }  # fmt: skip
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.run = Run(TrainSettings.model_validate(settings), self.data.training, device)
        self.change(batch_size)

    def change(self, batch_size: int, budget: float | None = None) -> None:
        """Trains with another batch size from the next step on, and until ``budget`` if it is given."""
        state = self.run.state
        state.swap_to(Candidate(batch_size))
        if budget is not None:
            state.settings = state.settings.model_copy(update={"budget": round(budget)})
        for group in state.optimizer.param_groups:
            group["betas"] = (group["betas"][0], second_beta(batch_size, self.half_life))

    def until(self, samples: float) -> None:
        if samples > self.run.state.samples:
            self.run.train_until(round(samples))

    def loss(self) -> float:
        return float(self.run.reference.measure(self.run.state.ema.model)["reference_loss"])

    def result(self) -> dict[str, Any]:
        encoder, device = self.run.state.ema.encoder, self.run.step.loader.device
        loss = self.loss()  # sets the batch statistics
        accuracy = record_scenarios.knn_accuracy(encoder, self.data, device, 5_000)
        return {
            "samples": self.run.state.samples,
            "reference_loss": round(loss, 5),
            "knn_accuracy": round(accuracy, 5),
        }


def planned(training: Training, plan: Plan, seconds: float, hardware: Hardware) -> dict[str, Any]:
    """Trains with a plan."""
    budget = samples_within(seconds, plan, hardware)
    training.start(plan[0][0], budget)
    for size, until in plan:
        training.change(size)
        training.until(until * budget - size / 2)  # the last update ends at most half a batch earlier or later
    return training.result()


def fork_and_keep(training: Training, size: int, seconds: float, hardware: Hardware) -> dict[str, Any]:
    """Doubles the batch size whenever a fork with the double size is as good; schedules follow the new size."""
    spent, course = 0.0, [size]
    budget = seconds * hardware.images_per_second(Candidate(size))
    training.start(size, budget)
    for fork in FORKS:
        state = training.run.state
        at = max((fork * seconds - spent) * hardware.images_per_second(Candidate(size)), 0.0) + state.samples
        before = state.samples
        training.until(at)
        spent += (state.samples - before) / hardware.images_per_second(Candidate(size))
        if 2 * size > SIZES[-1]:
            break
        start, end, losses, ends = copy.deepcopy(state.state_dict()), state.samples + WINDOW * budget, [], []
        for tried in (size, 2 * size):
            if tried > size:
                state.load_state_dict(start)
                training.change(tried)
            training.until(end)
            spent += (state.samples - start["samples_seen"]) / hardware.images_per_second(Candidate(tried))
            losses.append(training.loss())
            ends.append(copy.deepcopy(state.state_dict()) if tried == size else None)
        if losses[1] <= losses[0] + TOLERANCE:
            size *= 2
        else:
            state.load_state_dict(ends[0])
        course.append(size)
        budget = state.samples + (seconds - spent) * hardware.images_per_second(Candidate(size))
        training.change(size, budget)
    training.until(budget - size / 2)
    return {**training.result(), "course": course}


def table(results: Sequence[dict[str, Any]], hardware: str, half_life: str) -> Table:
    """Compares the policies of one model of time with the fixed size whose mean loss is the lowest."""
    own = [result for result in results if (result["hardware"], result["half_life"]) == (hardware, half_life)]
    names = list(dict.fromkeys(result["policy"] for result in own))
    losses = {name: {r["seed"]: r["reference_loss"] for r in own if r["policy"] == name} for name in names}
    fixed = [name for name in names if name.startswith("fixed")]
    best = min(fixed, key=lambda name: float(np.mean(list(losses[name].values()))))
    made = Table(title=f"{hardware}, second moment's half-life in {half_life}; best fixed size: {best}")
    for title in ("policy", "samples", "reference loss", "over the best fixed size", "kNN, %", "sizes"):
        made.add_column(title, justify="left" if title == "policy" else "right")
    for name in names:
        runs = [result for result in own if result["policy"] == name]
        over = [loss - losses[best][seed] for seed, loss in losses[name].items() if seed in losses[best]]
        accuracy = [100 * run["knn_accuracy"] for run in runs]
        made.add_row(
            name,
            f"{np.mean([run['samples'] for run in runs]):,.0f}",
            _spread(list(losses[name].values()), 3),
            _spread(over, 3),
            _spread(accuracy, 1),
            "; ".join(" ".join(map(str, dict.fromkeys(run.get("course", ())))) for run in runs).strip("; "),
        )
    return made


def _spread(values: Sequence[float], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="directory of CIFAR-10 in torchvision's layout")
    parser.add_argument("--out", type=Path, required=True, help="file of results, one JSON line per run")
    parser.add_argument("--hardware", nargs="+", choices=list(HARDWARE), default=["8-gpus", "64-gpus"])
    parser.add_argument("--half-life", nargs="+", choices=("steps", "samples"), default=["steps", "samples"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=4_096)
    parser.add_argument("--shrink", type=int, default=2, help="factor by which the images are made smaller")
    parser.add_argument("--samples", type=int, default=32_768, help="samples with B = 1024 in the time")
    parser.add_argument("--encoder", default='{"width": 8, "depth": 1}', help="settings of the encoder as JSON")
    parser.add_argument("--policies", nargs="+", default=[*PLANS, *FORKED], choices=[*PLANS, *FORKED])
    parser.add_argument("--limit", type=float, default=float("inf"), help="no run is started after this many seconds")
    parser.add_argument("--small", action="store_true", help="one seed, 8 GPUs, 8,192 samples")
    options = parser.parse_args()
    if options.small:
        options.hardware, options.half_life, options.seeds, options.samples = ["8-gpus"], ["steps"], [0], 8_192

    import torch

    torch.set_num_threads(1)
    results = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    identity = ("seed", "hardware", "half_life", "policy")
    setup = {name: getattr(options, name) for name in ("images", "shrink", "samples", "encoder")}
    results = [result for result in results if result.get("setup") == setup]
    done, started = {tuple(result[name] for name in identity) for result in results}, time.perf_counter()
    for run in itertools.product(options.seeds, options.hardware, options.half_life, options.policies):
        if run in done or time.perf_counter() - started > options.limit:
            continue
        seed, name, half_life, policy = run
        hardware = HARDWARE[name]
        data = record_scenarios.load("cifar10", options.root, options.images, 1.0, options.shrink, seed)
        seconds = options.samples / hardware.images_per_second(Candidate(1024))
        training = Training(data, seed, half_life, options)
        if policy in FORKED:
            result = fork_and_keep(training, FORKED[policy], seconds, hardware)
        else:
            result = planned(training, PLANS[policy], seconds, hardware)
        results.append({**dict(zip(identity, run, strict=True)), **result, "setup": setup})
        with options.out.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(f"[{time.perf_counter() - started:.0f} s] {results[-1]}", flush=True)
    for name, half_life in itertools.product(options.hardware, options.half_life):
        Console(width=140).print(table(results, name, half_life))


if __name__ == "__main__":
    main()
