"""Synthetic recordings with known best candidates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_ray.replay.recordings import Recording, Sweep
from tests.schedulers.curves import loss_curve

#: Statistical efficiencies; the best batch size is neither the smallest nor the largest.
RATES = {64: 1.0, 128: 1.5, 256: 0.9, 512: 0.5}
#: Samples per second; 256 has the highest goodput.
PACE = {64: 200.0, 128: 300.0, 256: 900.0, 512: 950.0}


def recorded(batch_size: int, seed: int = 0, *, rates: dict[int, float] = RATES, **changes: Any) -> dict[str, Any]:
    """Returns the content of one file."""
    samples, losses = loss_curve(
        rates[batch_size], 40_000, points=40, noise=0.005, seed=100 * seed + batch_size, end=40_000
    )
    return {
        "dataset": "made",
        "batch_size": batch_size,
        "accumulation": 1,
        "seed": seed,
        "learning_rate_rule": "sqrt",
        "samples": samples.tolist(),
        "seconds": (samples / PACE[batch_size]).tolist(),
        "train_loss": (losses + np.log(batch_size)).tolist(),
        "reference_loss": losses.tolist(),
        "probe_accuracy": 0.9 - 0.1 * float(losses[-1]),
        **changes,
    }


def sweep(seed: int = 0, *, rates: dict[int, float] = RATES) -> Sweep:
    runs = tuple(Recording.model_validate(recorded(size, seed, rates=rates)) for size in rates)
    return Sweep("made, rule sqrt", "made", "sqrt", seed, runs)


def watched(batch_size: int, seed: int = 0) -> dict[str, Any]:
    """Returns a line of a file with accuracies during training, as record_scenarios.py writes them."""
    run = recorded(batch_size, seed, scenario="made up")
    del run["probe_accuracy"]
    every = slice(4, None, 5)
    return run | {
        "knn_samples": run["samples"][every],
        "knn_accuracy": [0.9 - 0.1 * y for y in run["reference_loss"][every]],
    }


def write(directory: Path, contents: list[dict[str, Any]]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (directory / f"{number}.json").write_text(json.dumps(content))
    return directory


def write_lines(file: Path, contents: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(content)}\n" for content in contents))
    return file.parent
