"""Evaluates an encoder on held-out images. A part that fails does not affect the others."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptive_ray.datasets.arrays import Images, Labels
from adaptive_ray.report.accuracies import ACCURACIES, accuracies_of
from trainables.batches import ImageFiles
from trainables.evaluation.accuracy import Accuracy
from trainables.evaluation.knn import knn_accuracies, nearest_rows
from trainables.evaluation.linear import linear_accuracy
from trainables.evaluation.pixels import pixel_features, shrunk
from trainables.simclr import Encoder

_log = logging.getLogger(__name__)

_Features = tuple[Tensor, Tensor]  # of training and test images

#: Maximum memory of the training images; with 224 x 224 pixels these are 28,532 images.
_MOST_BYTES = 4 << 30
#: Number of held-out images with neighbours, and of their neighbours.
_QUERIES, _SHOWN = 6, 8


@dataclass(frozen=True)
class HeldOut:
    """Test images, uint8 [m, C, H, W], and labels of training [n] and test images [m]; None: unlabelled."""

    images: Images
    train_labels: Labels | None
    labels: Labels | None


@dataclass
class Evaluation:
    """Results of an evaluation."""

    #: From 0 to 1, for each of ``ACCURACIES`` and, with more than ten classes, for top-5; None: not available.
    accuracies: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(ACCURACIES))
    #: Reason for each missing accuracy or plot, in one line.
    unavailable: dict[str, str] = field(default_factory=dict)
    #: The nearest training images of the first held-out images, uint8 [6, 8, C, H, W].
    neighbours: Images | None = None

    @contextmanager
    def part(self, *names: str) -> Iterator[None]:
        """Records an exception raised in the block as the reason why ``names`` are missing."""
        try:
            yield
        except Exception as error:  # of any kind: the encoder is saved, and the other parts are still evaluated
            _log.debug("%s cannot be evaluated", names, exc_info=True)
            self.unavailable |= dict.fromkeys(names, reason(error))

    def add(self, name: str, accuracy: Accuracy) -> None:
        """Adds the accuracy of one classifier on one representation, such as ``untrained_knn``."""
        self.accuracies[f"{name}_accuracy"] = accuracy.top1
        if accuracy.top5 is not None:
            self.accuracies[f"{name}_top5_accuracy"] = accuracy.top5


def reason(error: BaseException) -> str:
    """Formats an error as one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    named = text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")
    return textwrap.shorten(named, 300, placeholder=" ...")


def failed(error: BaseException) -> Evaluation:
    """Returns an evaluation without results because of ``error``."""
    return Evaluation(unavailable=dict.fromkeys((*ACCURACIES, "neighbours.png"), reason(error)))


def evaluate(
    encoder: Encoder,
    untrained: Callable[[], Encoder],
    images: Images | ImageFiles,
    held_out: HeldOut,
    *,
    limit: int,
    device: torch.device,
) -> Evaluation:
    """Classifies held-out images by the features of an encoder, of an untrained one, and of raw pixels.

    Classifiers are trained on the first ``limit`` of the training ``images``, or fewer if their pixels exceed 4 GiB.
    Without labels, only neighbours are found. Errors of a part are not raised, but returned as reasons.
    """
    found = Evaluation()
    labelled = held_out.train_labels is not None and held_out.labels is not None
    with found.part(*ACCURACIES, "neighbours.png"):
        train, rows = _readable(images, limit, found)

        def embedded_by(network: Encoder) -> _Features:
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            features = [torch.from_numpy(network.embed(images)).to(device) for images in (train, held_out.images)]
            if not all(part.isfinite().all() for part in features):
                raise ValueError("some features are NaN or infinite")
            return features[0], features[1]

        def classify(prefix: str, features: _Features) -> None:
            if held_out.train_labels is None or held_out.labels is None:
                raise ValueError("the images are unlabelled or have a single class")
            targets, expected = (
                torch.tensor(array, device=device) for array in (held_out.train_labels[rows], held_out.labels)
            )
            with found.part(f"{prefix}probe_accuracy"):
                found.add(f"{prefix}probe", linear_accuracy(features[0], targets, features[1], expected))
            with found.part(f"{prefix}knn_accuracy", f"{prefix}knn200_accuracy"):
                for name, accuracy in knn_accuracies(features[0], targets, features[1], expected).items():
                    found.add(f"{prefix}{name}", accuracy)

        with found.part(*accuracies_of(""), "neighbours.png"):
            features = embedded_by(encoder)
            with found.part("neighbours.png"):
                shown = nearest_rows(features[0], features[1][:_QUERIES], _SHOWN).cpu().numpy()
                found.neighbours = train[shown]
            with found.part(*accuracies_of("") if labelled else ACCURACIES):
                classify("", features)
        if labelled:
            with found.part(*accuracies_of("untrained_")):
                classify("untrained_", embedded_by(untrained()))
            with found.part(*accuracies_of("pixel_")):
                small = [shrunk(torch.tensor(images)).to(device) for images in (train, held_out.images)]
                classify("pixel_", pixel_features(small[0], small[1]))
    return found


def _readable(images: Images | ImageFiles, limit: int, found: Evaluation) -> tuple[Images, NDArray[np.int64]]:
    """The first ``limit`` images and their rows, without files that cannot be decoded."""
    bytes_each = int(np.prod(images.shape[1:]))
    count = min(limit, len(images), max(_MOST_BYTES // bytes_each, 1))
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
