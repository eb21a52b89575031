"""An order in which every stretch of images holds every cluster in the data set's proportions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]


def stratified_order(strata: ArrayLike, seed: int, epoch: int) -> Indices:
    """The order of one epoch: int64 [n], a permutation.

    With ``u_c`` drawn per cluster, the j-th (shuffled) member of cluster ``c`` with ``n_c`` members gets the key
    ``(j + u_c) / n_c``, and keys are sorted. Any B consecutive entries then hold about ``B n_c / n`` of cluster ``c``,
    off by 2 at most, for every B at once: no batch size is named. The last images of an epoch and the first of the next
    one are two stretches.

    Args:
        strata: Each image's cluster, whole numbers in any numbering [n].
        seed: Fixes all epochs.
        epoch: Which one, from 0 on.

    Raises:
        ValueError: ``strata`` is not one-dimensional, is empty, or holds anything but whole numbers.
    """
    clusters = _checked(strata)
    _, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    generator = np.random.default_rng((seed, epoch))
    shuffled = generator.permutation(len(cluster))
    # Members stand together, each cluster's in shuffled order; images of equal keys stay shuffled, too.
    grouped = shuffled[np.argsort(cluster[shuffled], kind="stable")]
    place = np.arange(len(cluster)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    key = (place + np.repeat(generator.random(len(sizes)), sizes)) / np.repeat(sizes, sizes)
    return grouped[np.argsort(key, kind="stable")].astype(np.int64, copy=False)


def _checked(strata: ArrayLike) -> NDArray[np.integer]:
    clusters = np.asarray(strata)
    if clusters.ndim != 1 or clusters.size == 0:
        raise ValueError(f"strata of shape {clusters.shape} are none: give one cluster for each image, [n]")
    if not np.issubdtype(clusters.dtype, np.integer):
        raise ValueError(f"strata of type {clusters.dtype} are none: clusters are whole numbers")
    return clusters
