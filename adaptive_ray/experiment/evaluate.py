"""Evaluates an encoder. A part that fails does not affect the others."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaptive_ray.datasets.dataset import Dataset
from adaptive_ray.report.accuracies import ACCURACIES
from adaptive_ray.report.curves import neighbours
from adaptive_ray.report.methods import weighted_images, weighted_reports
from adaptive_ray.run_directory.atomic_write import write_whole
from trainables.batches import ImageFiles
from trainables.evaluation.probe import knn_probe, linear_probe, pixel_features
from trainables.report import TrainingReport
from trainables.simclr import Encoder

_log = logging.getLogger(__name__)

_Features = tuple[NDArray[np.float32], NDArray[np.float32]]  # of training and test images


@dataclass
class Evaluation:
    """Results of an evaluation.

    Args:
        accuracies: Accuracy (0 to 1) for each of ``ACCURACIES``; None: not available.
        unavailable: Reason for each missing accuracy or plot, in one line.
    """

    accuracies: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(ACCURACIES))
    unavailable: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def part(self, *names: str) -> Iterator[None]:
        """Records an exception raised in the block as the reason why ``names`` are missing."""
        try:
            yield
        except Exception as error:  # of any kind: the encoder is saved, and the other parts are still evaluated
            _log.debug("%s cannot be evaluated", names, exc_info=True)
            self.unavailable |= dict.fromkeys(names, reason(error))


def reason(error: Exception) -> str:
    """Formats an error as one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    named = text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")
    return textwrap.shorten(named, 300, placeholder=" ...")


def evaluate(
    encoder: Encoder,
    untrained: Callable[[], Encoder],
    data: Dataset,
    probe_images: int,
    reports: Sequence[TrainingReport],
    budget: int,
    directory: Path,
) -> Evaluation:
    """Probes an encoder, an untrained one and raw pixels; plots nearest neighbours and weighted samples.

    Args:
        encoder: The trained encoder.
        untrained: Returns the untrained encoder.
        data: Training and test images. Without labels, no accuracies are computed.
        probe_images: Maximum number of training images of the probes.
        reports: Reports of the training.
        budget: Budget in samples.
        directory: Directory for ``neighbours.png`` and, with sample weights, ``weights.png``.

    Returns:
        Accuracies and the reasons for missing parts. Errors of a part are not raised.
    """
    found = Evaluation()
    with found.part("weights.png"):
        if (weighted := weighted_reports(reports)) is not None:
            write_whole(directory / "weights.png", weighted_images(data.training.images, *weighted, budget))
    with found.part(*ACCURACIES, "neighbours.png"):
        train, rows = _readable(data.training.images, min(probe_images, len(data.training.images)), found)
        _evaluate_images(encoder, untrained, data, train, rows, directory, found)
    return found


def _evaluate_images(
    encoder: Encoder,
    untrained: Callable[[], Encoder],
    data: Dataset,
    train: NDArray[np.uint8],
    rows: NDArray[np.int64],
    directory: Path,
    found: Evaluation,
) -> None:
    labels, test_labels, test = data.labels, data.test_labels, data.test_images

    def embedded_by(network: Encoder) -> _Features:
        features = network.embed(train), network.embed(test)
        if not all(np.isfinite(part).all() for part in features):
            raise ValueError("some features are NaN or infinite")
        return features

    def probe(prefix: str, features: _Features) -> None:
        if labels is None or test_labels is None:
            raise ValueError("the images are unlabelled or have a single class")
        for name, fit in ((f"{prefix}probe_accuracy", linear_probe), (f"{prefix}knn_accuracy", knn_probe)):
            with found.part(name):
                found.accuracies[name] = fit(features[0], labels[rows], features[1], test_labels)

    with found.part(*_accuracies_of(""), "neighbours.png"):
        features = embedded_by(encoder)
        with found.part("neighbours.png"):
            write_whole(directory / "neighbours.png", neighbours(train, features[0], test, features[1]))
        with found.part(*ACCURACIES if labels is None else _accuracies_of("")):
            probe("", features)
    if labels is None:
        return
    with found.part(*_accuracies_of("untrained_")):
        probe("untrained_", embedded_by(untrained()))
    with found.part(*_accuracies_of("pixel_")):
        probe("pixel_", pixel_features(train, test))


def _accuracies_of(prefix: str) -> tuple[str, str]:
    return f"{prefix}probe_accuracy", f"{prefix}knn_accuracy"


def _readable(
    images: NDArray[np.uint8] | ImageFiles, count: int, found: Evaluation
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first ``count`` images and their rows, without files that cannot be decoded."""
    rows = np.arange(count)
    if not isinstance(images, ImageFiles):
        return images[:count], rows
    good, unreadable = images.readable(rows)
    if unreadable:  # not decoded in training, or corrupted since
        why = reason(next(iter(unreadable.values())))
        if not len(good):
            raise ValueError(f"none of {count:,} training images can be decoded: {why}")
        found.unavailable["images"] = f"{len(unreadable):,} of {count:,} training images were skipped: {why}"
    return good, np.delete(rows, list(unreadable))
