"""What a run has come to: the winner's encoder, probed beside an untrained one and raw pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from adaptive_ray.config import ExperimentConfig
from adaptive_ray.datasets import Dataset
from adaptive_ray.encoders import save_encoder
from adaptive_ray.errors import UserError
from adaptive_ray.pictures import neighbours
from adaptive_ray.run_directory import RunDirectory
from trainables.evaluation.probe import pixel_features, probe
from trainables.training import TrainSettings, initial_encoder, load_averaged_encoder


def judge(
    winner: str,
    directory: RunDirectory,
    data: Dataset,
    config: ExperimentConfig,
    settings: Mapping[str, Any],
    budget: int,
) -> dict[str, Any]:
    """Probes the winner, saves its encoder and its neighbours' picture, and returns what ``result.json`` holds.

    Args:
        winner: The candidate whose last checkpoint is judged.
        directory: Of the run; it holds the reports, and gets the encoder.
        data: What the winner was trained on, and images to test on.
        config: Says how many images the probes learn from.
        settings: Of ``TrainSettings``, without the batch size.
        budget: The whole run, in samples.

    Returns:
        All but the seconds that the run took.

    Raises:
        UserError: A training image on disk is damaged.
    """
    reports = directory.reports()
    last = {report["candidate"]: report for report in reports}
    candidate = TrainSettings.model_validate({**settings, "batch_size": int(winner)})
    channels, size, _ = data.shape
    encoder = load_averaged_encoder(candidate, channels, size, last[winner]["checkpoint_path"])
    explored = sum(report["samples_seen"] for key, report in last.items() if key != winner)

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
    save_encoder(
        encoder,
        directory.path,
        image_size=size,
        provenance={
            "dataset": data.name,
            "batch_size": int(winner),
            "samples_seen": last[winner]["samples_seen"],
        },
    )
    return {
        "chosen_batch_size": int(winner),
        "probe_accuracy": trained.linear,
        "untrained_probe_accuracy": untrained.linear,
        "pixel_probe_accuracy": pixels.linear,
        "knn_accuracy": trained.knn,
        "untrained_knn_accuracy": untrained.knn,
        "pixel_knn_accuracy": pixels.knn,
        "reference_loss": last[winner]["reference_loss"],
        "budget": budget,
        "explore_fraction": explored / budget,
        "samples_seen": last[winner]["samples_seen"],
        "samples_explored": explored,
    }
