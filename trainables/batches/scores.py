"""Scores how well a batch represents the data's distribution, from 0 to 1.

Scores are computed on the host from clusters or pretrained features of a batch's images, before it is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainables.batches.sampling import Indices, clusters_of
from trainables.settings.accumulation import ScoreName

#: Maps the indices of a batch, int64 [B], to its score.
BatchScore = Callable[[Indices], float]

#: Scores that need features; others need strata.
OF_FEATURES = ("frechet", "mmd")

#: Number of random Fourier features, and of pairs of images whose median distance is the kernel's width.
_FOURIER, _SAMPLE = 256, 1_000
#: Images whose features are processed at once.
_CHUNK = 65_536


class HistogramScore:
    """Returns 1 - the total variation distance between the batch's and the data's cluster proportions.

    Args:
        strata: Cluster of each image, integers [n].
    """

    def __init__(self, strata: ArrayLike) -> None:
        self._cluster, sizes = clusters_of(strata)
        self._shares = sizes / sizes.sum()

    def __call__(self, indices: Indices) -> float:
        counts = np.bincount(self._cluster[indices], minlength=len(self._shares))
        return float(np.minimum(counts / len(indices), self._shares).sum())


class FrechetScore:
    """Returns 1 / (1 + D^2 / d) with the Frechet distance D between normal distributions fitted to batch and data.

    In coordinates in which the data has mean 0 and covariance 1, D^2 = |m|^2 + sum (sqrt(lambda) - 1)^2 for the batch's
    mean m and the eigenvalues lambda of its covariance (Dowson & Landau 1982). No matrix square root is needed.

    Args:
        features: Features of the images [n, d]; directions without variance are ignored.
    """

    def __init__(self, features: NDArray[np.floating]) -> None:
        mean, covariance = _moments(features)
        variances, axes = np.linalg.eigh(covariance)
        kept = variances > 1e-6 * max(float(variances.max()), 1e-12)
        self._features, self._mean = features, mean
        self._whiten = axes[:, kept] / np.sqrt(variances[kept])

    def __call__(self, indices: Indices) -> float:
        rows = (self._features[indices] - self._mean) @ self._whiten
        mean, dimensions = rows.mean(axis=0), rows.shape[1]
        if dimensions == 0:
            return 1.0  # all features are equal
        spread = np.linalg.eigvalsh((rows - mean).T @ (rows - mean) / len(rows))
        distance = mean @ mean + ((np.sqrt(np.maximum(spread, 0.0)) - 1.0) ** 2).sum()
        return float(1.0 / (1.0 + distance / dimensions))


class MMDScore:
    """Returns 1 - MMD / sqrt(2) with the maximum mean discrepancy between batch and data (Gretton et al. 2012).

    The kernel is Gaussian with the median distance between images as its width. It is approximated by random Fourier
    features (Rahimi & Recht 2007), so that the mean over the data is computed once.

    Args:
        features: Features of the images [n, d].
        seed: Seed of the Fourier features and of the pairs of images that determine the width.
    """

    def __init__(self, features: NDArray[np.floating], seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        pairs = generator.integers(0, len(features), (2, _SAMPLE))
        differences = features[pairs[0]].astype(np.float64) - features[pairs[1]]
        width = float(np.median(np.linalg.norm(differences, axis=1))) or 1.0
        self._features = features
        self._waves = generator.normal(0.0, 1.0 / width, (features.shape[1], _FOURIER // 2)).astype(np.float32)
        chunks = range(0, len(features), _CHUNK)
        total = sum(self._mapped(features[start : start + _CHUNK]).sum(axis=0, dtype=np.float64) for start in chunks)
        self._mean = total / len(features)

    def __call__(self, indices: Indices) -> float:
        mean = self._mapped(self._features[indices]).mean(axis=0, dtype=np.float64)
        return max(0.0, 1.0 - float(np.linalg.norm(mean - self._mean)) / math.sqrt(2.0))

    def _mapped(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Maps features [m, d] to Fourier features [m, 256] of length 1, whose inner products are the kernel."""
        angles = features.astype(np.float32) @ self._waves
        mapped: NDArray[np.float32] = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        return mapped * np.float32(1 / math.sqrt(_FOURIER // 2))


def batch_score(
    name: ScoreName, strata: ArrayLike | None, features: NDArray[np.floating] | None, seed: int
) -> BatchScore:
    """Returns the score of this name.

    Raises:
        ValueError: The strata or features that it needs are None.
    """
    if name == "histogram":
        if strata is None:
            raise ValueError("score histogram needs the data's strata (clusters), which are missing")
        return HistogramScore(strata)
    if features is None:
        raise ValueError(f"score {name} needs the data's features, which are missing")
    return FrechetScore(features) if name == "frechet" else MMDScore(features, seed)


def _moments(features: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns mean [d] and covariance [d, d] in float64, without a second copy of the features."""
    n, d = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for start in range(0, n, _CHUNK):
        rows = features[start : start + _CHUNK] - mean
        covariance += rows.T @ rows
    return mean, covariance / n
