"""Saves the winner's encoder as soon as it is trained, then evaluates it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.datasets.dataset import Dataset
from adaptive_ray.encoders import save_encoder
from adaptive_ray.run_directory.directory import RunDirectory
from schedulers import Candidate
from trainables.settings import TrainSettings
from trainables.simclr import Encoder
from trainables.training.loop import initial_encoder, load_ema_encoder


@dataclass(frozen=True)
class Winner:
    """The candidate whose trial is finished, and what it has trained."""

    key: str
    settings: TrainSettings
    chosen: Candidate  # what it trained with for most of its later half
    encoder: Encoder
    reports: Sequence[Mapping[str, Any]]

    @classmethod
    def saved(cls, winner: Candidate, directory: RunDirectory, data: Dataset, settings: TrainSettings) -> Winner:
        """Writes the encoder of the winner's last checkpoint to ``directory``; before anything else that may fail.

        Args:
            winner: The candidate whose trial has trained to the end of the budget.
            directory: Of the run; it holds the reports.
            data: What the winner was trained on.
            settings: That the winner has trained with.
        """
        reports = directory.reports_of(winner.key)
        last, chosen = reports[-1], _mostly_used(reports)
        # Of a repeated report the last one names the checkpoint that there is.
        checkpoint = [each["checkpoint_path"] for each in directory.reports() if each["candidate"] == winner.key][-1]
        channels, size, _ = data.shape
        encoder = load_ema_encoder(settings, channels, size, checkpoint)
        provenance = {
            "dataset": data.name,
            "batch_size": chosen.batch_size,
            "accumulation": chosen.accumulation,
            "samples_seen": last["samples_seen"],
        }
        save_encoder(encoder, directory.path, image_size=size, provenance=provenance)
        return cls(winner.key, settings, chosen, encoder, reports)


def judge(
    winner: Winner, directory: RunDirectory, data: Dataset, config: ExperimentConfig, budget: int, explored: int
) -> dict[str, Any]:
    """Evaluates the winner's encoder, and returns what ``result.json`` holds.

    Args:
        winner: Its encoder is saved.
        directory: Of the run; it gets the pictures.
        data: What the winner was trained on, and images to test on.
        config: Says how many images the probes learn from.
        budget: The whole run, in samples.
        explored: Samples that went into candidates that lost.

    Returns:
        All but the seconds that the run took. An accuracy that could not be computed is None; ``unavailable`` says why.
    """
    from adaptive_ray.experiment.evaluate import (
        evaluate,  # matplotlib and scikit-learn: not before the encoder is saved
    )

    def untrained() -> Encoder:
        return initial_encoder(winner.settings, data.training)

    found = evaluate(
        winner.encoder, untrained, data, config.probe_images, winner.reports, budget=budget, directory=directory.path
    )
    first, last = winner.reports[0], winner.reports[-1]
    return {
        "winner": winner.key,
        "chosen_batch_size": winner.chosen.batch_size,
        "chosen_accumulation": winner.chosen.accumulation,
        **found.accuracies,
        "first_reference_loss": first["reference_loss"],
        "reference_loss": last["reference_loss"],
        "budget": budget,
        "explore_fraction": explored / budget,
        "samples_seen": last["samples_seen"],
        "samples_explored": explored,
        "unavailable": found.unavailable,
    }


def _mostly_used(reports: Sequence[Mapping[str, Any]]) -> Candidate:
    """The candidate that a run trained with for most of its later half; it may have swapped."""
    used: Counter[Candidate] = Counter()
    for before, report in itertools.pairwise([{"samples_seen": 0}, *reports]):
        late = max(report["samples_seen"] - max(before["samples_seen"], reports[-1]["samples_seen"] / 2), 0)
        used[Candidate.from_dict(report)] += late
    return max(used, key=lambda candidate: used[candidate])
