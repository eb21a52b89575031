"""All classifiers on frozen features of one representation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.evaluation.knn import knn_accuracies
from trainables.evaluation.linear import linear_accuracy


@dataclass(frozen=True)
class ProbeScores:
    """Top-1 accuracies on held-out images, in 0 to 1."""

    linear: float
    knn: float
    knn200: float


def probe(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    device: torch.device | str = "cpu",
) -> ProbeScores:
    """Returns the accuracies on ``test`` [m, d] of a linear classifier and of neighbours in ``train`` [n, d].

    Raises:
        ValueError: All training images are of one class, or there are no test images.
    """
    features, targets, queries, expected = (
        torch.tensor(array, device=device) for array in (train, train_labels, test, test_labels)
    )
    neighbours = knn_accuracies(features, targets, queries, expected)
    linear = linear_accuracy(features, targets, queries, expected)
    return ProbeScores(linear.top1, neighbours["knn"].top1, neighbours["knn200"].top1)
