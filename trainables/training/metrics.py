"""Reports the training since the last evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainables.batches import Update
from trainables.report import TrainingReport
from trainables.simclr.losses import chance_level
from trainables.training.step import TrainStep


@dataclass(frozen=True)
class Interval:
    """The training between two reports."""

    updates: list[Update]
    mean_loss: float  # in nats
    images: int  # seen over all workers
    seconds: float  # without compilation
    data_wait: float  # fraction of the time in which this worker waited for images


def training_report(step: TrainStep, interval: Interval, measured: Mapping[str, Any]) -> TrainingReport:
    """Returns the report of ``interval``, with what was ``measured`` of the EMA model after it.

    Throughput is in images (not views) over all workers.
    """
    state, budget, size = step.state, step.state.settings.budget, step.state.candidate.batch_size
    batches = [len(update.weights) for update in interval.updates]
    negatives = [len(group) * size for update in interval.updates for group in update.groups]
    chance = float(np.mean([chance_level(state.settings.loss, images) for images in negatives]))
    adaptive: dict[str, Any] = {}
    if step.accumulation is not None:
        scores = np.concatenate([update.scores for update in interval.updates])
        adaptive = {
            "batches_per_update": float(np.mean(batches)),
            "information": float(scores.mean()),
            "least_information": float(scores.min()),
            "informed": float(np.mean([update.informed for update in interval.updates])),
            "alpha": step.accumulation.alpha(size),
        }
    return TrainingReport(
        samples_seen=state.samples,
        seconds=state.seconds,
        batch_size=size,
        accumulation=state.candidate.accumulation,
        micro_batch=min(step.gradients.micro_batch, max(step.loader.shard_sizes(size))),
        workers=step.loader.world_size,
        progress=min(state.samples / budget, 1.0),
        learning_rate=step.learning_rate,
        train_loss=interval.mean_loss,
        train_loss_above_chance=interval.mean_loss - chance,
        images_per_second=interval.images / max(interval.seconds, 1e-9),
        data_wait=interval.data_wait,
        images_per_update=size * float(np.mean(batches)),
        weighted=step.weights.extremes(),
        **adaptive,
        **measured,
    )
