"""Vector operations for clustering: projection, k-means, means, nearest centres."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Labels = NDArray[np.int64]

#: Rows that are loaded at once.
CHUNK = 65_536


def chunks(count: int) -> Iterator[slice]:
    """Yields slices of at most ``CHUNK`` rows."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


def k_means(points: Points, k: int, seed: int, runs: int = 1) -> Labels:
    """Returns k-means labels [n], the best of ``runs``; fewer than ``k`` clusters if fewer points are distinct."""
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fewer distinct points
        labels = KMeans(k, n_init=runs, max_iter=50, random_state=seed).fit_predict(points)
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.int64)


class Projection(NamedTuple):
    """A projection to principal components: features [n, d] -> points [n, p]."""

    mean: Points
    components: Points  # [p, d]

    @classmethod
    def of(cls, sample: Points, dimensions: int, seed: int) -> Projection:
        """Fits a projection to a sample; for identical vectors it is arbitrary."""
        from sklearn.decomposition import PCA

        with np.errstate(invalid="ignore"):  # the explained fraction of no variance
            pca = PCA(min(dimensions, *sample.shape), random_state=seed).fit(sample)
        return cls(pca.mean_.astype(np.float32), pca.components_.astype(np.float32))

    def __call__(self, features: NDArray[Any]) -> Points:
        # PCA.transform subtracts after the product, which is inaccurate if the mean is large.
        return np.asarray((features.astype(np.float32) - self.mean) @ self.components.T)


def nearest(points: Points, centres: Points) -> Labels:
    """Returns the index of the nearest centre of each point [n]."""
    distances = (centres**2).sum(1) - 2 * points @ centres.T
    return np.asarray(distances.argmin(1))


def membership(labels: Labels, count: int) -> Any:
    """Returns the sparse matrix [count, n] that is 1 where a point (column) has a label (row)."""
    from scipy.sparse import csr_matrix

    n = len(labels)
    return csr_matrix((np.ones(n), (labels, np.arange(n))), shape=(count, n))


def means(points: Points, labels: Labels, count: int) -> Points:
    """Returns the mean of the points of each label [count, d]; zero for unused labels."""
    sizes = np.bincount(labels, minlength=count)
    return np.asarray(membership(labels, count) @ points / np.maximum(sizes, 1)[:, None], dtype=np.float32)
