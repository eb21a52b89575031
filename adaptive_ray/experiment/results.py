"""Saves and evaluates the encoder of the winner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_ray.datasets.dataset import Dataset
from adaptive_ray.encoders import save_encoder
from adaptive_ray.experiment.evaluate import Evaluation, HeldOut
from adaptive_ray.run_directory.atomic_write import write_whole
from adaptive_ray.run_directory.directory import RunDirectory
from schedulers import Candidate
from trainables.report import TrainingReport
from trainables.settings import TrainSettings
from trainables.simclr import Encoder
from trainables.training.loop import load_ema_encoder


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
        """Saves the encoder of the winner's last checkpoint to the directory of its run."""
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
    winner: Winner,
    directory: RunDirectory,
    data: Dataset,
    evaluate: Callable[[HeldOut], Evaluation],
    budget: int,
    explored: int,
) -> dict[str, Any]:
    """Evaluates the encoder of the winner, writes plots to the directory, and returns the content of ``result.json``.

    ``budget`` is in samples, as is ``explored``, the part spent on losing candidates. All entries except the run time
    are returned. Missing accuracies are None; ``unavailable`` holds the reasons.
    """
    found = evaluate(HeldOut(data.test_images, data.labels, data.test_labels))
    write_plots(found, winner.reports, data, budget, directory.path)
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


def write_plots(
    found: Evaluation, reports: Sequence[TrainingReport], data: Dataset, budget: int, directory: Path
) -> None:
    """Writes ``neighbours.png`` and, with sample weights, ``weights.png``. Errors are added to ``found``."""
    if found.neighbours is not None:
        with found.part("neighbours.png"):
            from adaptive_ray.report.curves import neighbours  # matplotlib: not before the encoder is saved

            queries = data.test_images[: len(found.neighbours)]
            write_whole(directory / "neighbours.png", neighbours(queries, found.neighbours))
    with found.part("weights.png"):
        from adaptive_ray.report.methods import weighted_images, weighted_reports

        if (weighted := weighted_reports(reports)) is not None:
            write_whole(directory / "weights.png", weighted_images(data.training.images, *weighted, budget))


def _mostly_used(reports: Sequence[TrainingReport]) -> Candidate:
    """The candidate that a run used most in the second half of its training; it may have swapped."""
    used: defaultdict[Candidate, float] = defaultdict(float)
    for before, report in zip([0, *(report.samples_seen for report in reports)], reports, strict=False):
        used[report.candidate] += max(report.samples_seen - max(before, reports[-1].samples_seen / 2), 0)
    return max(used, key=lambda candidate: used[candidate])
