"""Saves and evaluates the encoder of the winner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.datasets.dataset import Dataset
from adaptive_ray.encoders import save_encoder
from adaptive_ray.run_directory.directory import RunDirectory
from schedulers import Candidate
from trainables.report import TrainingReport
from trainables.settings import TrainSettings
from trainables.simclr import Encoder
from trainables.training.loop import initial_encoder, load_ema_encoder


@dataclass(frozen=True)
class Winner:
    """The winner after its training."""

    key: str
    settings: TrainSettings
    chosen: Candidate  # most used in the second half of its training
    encoder: Encoder
    reports: Sequence[TrainingReport]

    @classmethod
    def saved(cls, winner: Candidate, directory: RunDirectory, data: Dataset, settings: TrainSettings) -> Winner:
        """Saves the encoder of the winner's last checkpoint to ``directory``.

        Args:
            winner: The candidate whose training is finished.
            directory: Directory of the run, with its reports.
            data: The training data.
            settings: That the winner has trained with.
        """
        reports = directory.reports_of(winner.key)
        last, chosen = reports[-1], _mostly_used(reports)
        # Of repeated reports, the last has the existing checkpoint.
        checkpoint = directory.reports()[winner.key][-1].checkpoint_path
        assert checkpoint is not None
        channels, size, _ = data.shape
        encoder = load_ema_encoder(settings, channels, size, checkpoint)
        provenance = {
            "dataset": data.name,
            "batch_size": chosen.batch_size,
            "accumulation": chosen.accumulation,
            "samples_seen": last.samples_seen,
        }
        save_encoder(encoder, directory.path, image_size=size, provenance=provenance)
        return cls(winner.key, settings, chosen, encoder, reports)


def judge(
    winner: Winner, directory: RunDirectory, data: Dataset, config: ExperimentConfig, budget: int, explored: int
) -> dict[str, Any]:
    """Evaluates the encoder of the winner and returns the content of ``result.json``.

    Args:
        winner: The winner.
        directory: Directory of the run; plots are written to it.
        data: Training and test images.
        config: Configuration of the run.
        budget: Budget in samples.
        explored: Samples spent on losing candidates.

    Returns:
        All entries except the run time. Missing accuracies are None; ``unavailable`` holds the reasons.
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
        "first_reference_loss": first.reference_loss,
        "reference_loss": last.reference_loss,
        "budget": budget,
        "explore_fraction": explored / budget,
        "samples_seen": last.samples_seen,
        "samples_explored": explored,
        "unavailable": found.unavailable,
    }


def _mostly_used(reports: Sequence[TrainingReport]) -> Candidate:
    """The candidate that a run used most in the second half of its training; it may have swapped."""
    used: defaultdict[Candidate, float] = defaultdict(float)
    for before, report in zip([0, *(report.samples_seen for report in reports)], reports, strict=False):
        used[report.candidate] += max(report.samples_seen - max(before, reports[-1].samples_seen / 2), 0)
    return max(used, key=lambda candidate: used[candidate])
