"""What a run has come to: the winner's encoder, probed beside an untrained one and raw pixels."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from adaptive_ray.config import ExperimentConfig
from adaptive_ray.datasets import Dataset
from adaptive_ray.encoders import save_encoder
from adaptive_ray.errors import UserError
from adaptive_ray.method_pictures import weighted_images, weighted_reports
from adaptive_ray.pictures import neighbours
from adaptive_ray.run_directory import RunDirectory
from schedulers import Candidate
from trainables.evaluation.probe import pixel_features, probe
from trainables.settings import TrainSettings
from trainables.training import initial_encoder, load_averaged_encoder


def judge(
    winner: Candidate,
    directory: RunDirectory,
    data: Dataset,
    config: ExperimentConfig,
    settings: Mapping[str, Any],
    budget: int,
    explored: int,
) -> dict[str, Any]:
    """Probes the winner, saves its encoder and its neighbours' picture, and returns what ``result.json`` holds.

    Args:
        winner: The candidate whose trial has come to the end of the budget; its last checkpoint is judged.
        directory: Of the run; it holds the reports, and gets the encoder.
        data: What the winner was trained on, and images to test on.
        config: Says how many images the probes learn from.
        settings: Of ``TrainSettings``, without the candidate's own.
        budget: The whole run, in samples.
        explored: Samples that went into candidates that lost.

    Returns:
        All but the seconds that the run took.

    Raises:
        UserError: A training image on disk is damaged.
    """
    reports = [report for report in directory.reports() if report["candidate"] == winner.key]
    last, chosen = reports[-1], _mostly_used(reports)
    own = {"batch_size": winner.batch_size, "accumulation": winner.accumulation}
    candidate = TrainSettings.model_validate({**settings, **own})
    channels, size, _ = data.shape
    encoder = load_averaged_encoder(candidate, channels, size, last["checkpoint_path"])

    assert data.labels is not None
    assert data.test_labels is not None
    some = slice(0, config.probe_images)
    try:
        train_images, labels = data.training.images[some], data.labels[some]
    except ValueError as error:  # a file that training has not come to
        raise UserError(f"dataset {data.name}: {error}") from None
    test_images, test_labels = data.test_images, data.test_labels

    def features(network: Any, images: Any) -> Any:
        return network.embed(torch.tensor(images)).numpy()

    train_features, test_features = features(encoder, train_images), features(encoder, test_images)
    trained = probe(train_features, labels, test_features, test_labels)
    fresh = initial_encoder(candidate, data.training)
    untrained = probe(features(fresh, train_images), labels, features(fresh, test_images), test_labels)
    train_pixels, test_pixels = pixel_features(train_images, test_images)
    pixels = probe(train_pixels, labels, test_pixels, test_labels)

    picture = neighbours(train_images, train_features, test_images, test_features)
    (directory.path / "neighbours.png").write_bytes(picture)
    if (weighted := weighted_reports(reports)) is not None:
        (directory.path / "weights.png").write_bytes(weighted_images(data.training.images, *weighted, budget))
    save_encoder(
        encoder,
        directory.path,
        image_size=size,
        provenance={
            "dataset": data.name,
            "batch_size": chosen.batch_size,
            "accumulation": chosen.accumulation,
            "samples_seen": last["samples_seen"],
        },
    )
    return {
        "winner": winner.key,
        "chosen_batch_size": chosen.batch_size,
        "chosen_accumulation": chosen.accumulation,
        "probe_accuracy": trained.linear,
        "untrained_probe_accuracy": untrained.linear,
        "pixel_probe_accuracy": pixels.linear,
        "knn_accuracy": trained.knn,
        "untrained_knn_accuracy": untrained.knn,
        "pixel_knn_accuracy": pixels.knn,
        "reference_loss": last["reference_loss"],
        "budget": budget,
        "explore_fraction": explored / budget,
        "samples_seen": last["samples_seen"],
        "samples_explored": explored,
    }


def _mostly_used(reports: Sequence[Mapping[str, Any]]) -> Candidate:
    """What a run trained with in most of its later half, should it have swapped."""
    used: Counter[Candidate] = Counter()
    for before, report in itertools.pairwise([{"samples_seen": 0}, *reports]):
        late = max(report["samples_seen"] - max(before["samples_seen"], reports[-1]["samples_seen"] / 2), 0)
        used[Candidate(report["batch_size"], report.get("accumulation", 1))] += late
    return max(used, key=lambda candidate: used[candidate])
