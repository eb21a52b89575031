"""How much of the whole data's distribution a batch holds: from 0 to 1, and the more, the closer the two are.

Scores come from what is known of the images beforehand, clusters or pretrained features. They follow from the batch's
indices alone, on the host, before the batch is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainables.batches.sampling import Indices, clusters_of
from trainables.settings.accumulation import ScoreName

#: Indices of a batch, int64 [B] -> its score.
BatchScore = Callable[[Indices], float]

#: Scores that need features; the other one needs strata.
OF_FEATURES = ("frechet", "mmd")

#: Random Fourier features, half of them cosines; and images whose distances give the kernel's width.
_FOURIER, _SAMPLE = 256, 1_000
#: Images whose features are worked on at once.
_CHUNK = 65_536


class HistogramScore:
    """1 - the total variation between the batch's and the data's shares of the clusters.

    Args:
        strata: Each image's cluster, whole numbers [n].
    """

    def __init__(self, strata: ArrayLike) -> None:
        self._cluster, sizes = clusters_of(strata)
        self._shares = sizes / sizes.sum()

    def __call__(self, indices: Indices) -> float:
        counts = np.bincount(self._cluster[indices], minlength=len(self._shares))
        return float(np.minimum(counts / len(indices), self._shares).sum())


class FrechetScore:
    """1 / (1 + D^2 / d), with the Frechet distance D between the batch's and the data's normal distributions.

    In coordinates in which the data has mean 0 and covariance 1, D^2 = |m|^2 + sum (sqrt(lambda) - 1)^2 for the batch's
    mean m and the eigenvalues lambda of its covariance (Dowson & Landau 1982): no square root of a matrix is needed.

    Args:
        features: [n, d]; directions in which they do not vary do not count.
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
            return 1.0  # images that all look the same
        spread = np.linalg.eigvalsh((rows - mean).T @ (rows - mean) / len(rows))
        distance = mean @ mean + ((np.sqrt(np.maximum(spread, 0.0)) - 1.0) ** 2).sum()
        return float(1.0 / (1.0 + distance / dimensions))


class MMDScore:
    """1 - MMD / sqrt(2), with the maximum mean discrepancy between batch and data (Gretton et al. 2012).

    The kernel is Gaussian, as wide as the median distance between images, by random Fourier features (Rahimi & Recht
    2007), so that the data's side of it is one mean that is taken once.

    Args:
        features: [n, d].
        seed: Of the Fourier features, and of the images that the width is taken from.
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
        """[m, d] -> [m, 256], each of length 1; the inner product of two is the kernel."""
        angles = features.astype(np.float32) @ self._waves
        mapped: NDArray[np.float32] = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        return mapped * np.float32(1 / math.sqrt(_FOURIER // 2))


def batch_score(
    name: ScoreName, strata: ArrayLike | None, features: NDArray[np.floating] | None, seed: int
) -> BatchScore:
    """The score of this name.

    Raises:
        ValueError: What it is computed from is not given.
    """
    if name == "histogram":
        if strata is None:
            raise ValueError("score histogram compares clusters, and there are none: give the data's strata")
        return HistogramScore(strata)
    if features is None:
        raise ValueError(f"score {name} compares features, and there are none: give the data's features")
    return FrechetScore(features) if name == "frechet" else MMDScore(features, seed)


def _moments(features: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [d] and covariance [d, d], in float64 without a second copy of the features."""
    n, d = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for start in range(0, n, _CHUNK):
        rows = features[start : start + _CHUNK] - mean
        covariance += rows.T @ rows
    return mean, covariance / n
