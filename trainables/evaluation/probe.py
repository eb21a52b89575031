"""Evaluates frozen representations with simple classifiers. Imports scikit-learn, which workers do not need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

#: Neighbours of the kNN probe.
NEIGHBOURS = 20

#: Principal components of raw pixels in a probe. With all 3,072 values of a small colour image it is ten times slower
#: and less accurate (27 % instead of 32 % on 2,048 images of CIFAR-10).
PIXEL_COMPONENTS = 128


def pixel_features(
    train: NDArray[np.uint8], test: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Projects images [n, C, H, W] and [m, C, H, W] on the principal components of the first: [n, d] and [m, d]."""
    rows, others = (images.reshape(len(images), -1).astype(np.float32) / 255 for images in (train, test))
    components = min(PIXEL_COMPONENTS, *rows.shape)
    projection = PCA(components, svd_solver="randomized", random_state=0).fit(rows)
    return projection.transform(rows), projection.transform(others)


@dataclass(frozen=True)
class ProbeScores:
    """Accuracies on held-out images, in 0 to 1."""

    linear: float
    knn: float


def linear_probe(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> float:
    """Returns the accuracy on ``test`` [m, d] of a linear classifier fitted to ``train`` [n, d].

    The classifier is a multinomial logistic regression on standardised features (L2 penalty, C = 1).

    Raises:
        ValueError: All training images are of one class, or there are no test images.
    """
    _check(train_labels, test_labels)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    return float(classifier.fit(train, train_labels).score(test, test_labels))


def knn_probe(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> float:
    """Returns the accuracy on ``test`` [m, d] of the 20 nearest neighbours in ``train`` [n, d] by cosine similarity.

    Neighbours are weighted by inverse distance.

    Raises:
        ValueError: All training images are of one class, or there are no test images.
    """
    _check(train_labels, test_labels)
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(train)), metric="euclidean", weights="distance")
    return float(make_pipeline(Normalizer(), neighbours).fit(train, train_labels).score(test, test_labels))


def probe(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> ProbeScores:
    """Returns the accuracies of both probes. See ``linear_probe`` for arguments and errors."""
    arguments = train, train_labels, test, test_labels
    return ProbeScores(linear=linear_probe(*arguments), knn=knn_probe(*arguments))


def _check(train_labels: NDArray[np.int64], test_labels: NDArray[np.int64]) -> None:
    if len(test_labels) == 0:
        raise ValueError("there are no held-out images to test a probe on")
    if len(np.unique(train_labels)) < 2:
        raise ValueError(f"all {len(train_labels):,} training images of a probe are of one class")
