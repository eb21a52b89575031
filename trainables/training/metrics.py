"""The metrics that a training run reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainables.batches import Update
from trainables.simclr.losses import chance_level
from trainables.training.step import TrainStep


@dataclass(frozen=True)
class Interval:
    """The training between two reports.

    Args:
        updates: Updates that were made.
        mean_loss: Mean of their losses, in nats.
        images: Images seen over all workers.
        seconds: Duration of the training, without compilation.
        data_wait: Share of ``seconds`` in which this worker waited for images.
    """

    updates: list[Update]
    mean_loss: float
    images: int
    seconds: float
    data_wait: float


def training_metrics(step: TrainStep, interval: Interval) -> dict[str, Any]:
    """Returns the metrics of ``interval``. Losses are in nats, throughput in images (not views) over all workers."""
    state, budget, size = step.state, step.state.settings.budget, step.state.candidate.batch_size
    batches = [len(update.weights) for update in interval.updates]
    negatives = [len(group) * size for update in interval.updates for group in update.groups]
    chance = float(np.mean([chance_level(state.settings.loss, images) for images in negatives]))
    metrics: dict[str, Any] = {
        "samples_seen": state.samples,
        "seconds": state.seconds,
        "batch_size": size,
        "accumulation": state.candidate.accumulation,
        "micro_batch": min(step.gradients.micro_batch, max(step.loader.shard_sizes(size))),
        "workers": step.loader.world_size,
        "progress": min(state.samples / budget, 1.0),
        "learning_rate": step.learning_rate,
        "train_loss": interval.mean_loss,
        "train_loss_above_chance": interval.mean_loss - chance,
        "images_per_second": interval.images / max(interval.seconds, 1e-9),
        "data_wait": interval.data_wait,
        "images_per_update": size * float(np.mean(batches)),
    }
    if step.accumulation is not None:
        scores = np.concatenate([update.scores for update in interval.updates])
        metrics |= {
            "batches_per_update": float(np.mean(batches)),
            "information": float(scores.mean()),
            "least_information": float(scores.min()),
            "informed": float(np.mean([update.informed for update in interval.updates])),
            "alpha": step.accumulation.alpha(size),
        }
    extremes = step.weights.extremes()
    return metrics if extremes is None else {**metrics, "weighted": extremes}
