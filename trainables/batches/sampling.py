"""Orders the images of an epoch by their clusters, for any batch size: a batch is B consecutive entries.

An order is a function of (strata, seed, epoch); pass ``partial(stratified_order, strata, seed)`` to ``SampleStream``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]

#: Images of one cluster that ``clustered_order`` keeps together.
RUN = 64


def stratified_order(strata: ArrayLike, seed: int, epoch: int) -> Indices:
    """Returns an order in which every batch has the data's proportions of clusters, int64 [n].

    An epoch holds every image once. The j-th (shuffled) member of cluster ``c`` with ``n_c`` members gets the key
    ``(j + u_c) / n_c`` with a random ``u_c`` per cluster, and images are sorted by key. Any B consecutive entries of an
    epoch then hold ``B n_c / n`` images of cluster ``c``, off by 2 at most, for every B.

    Args:
        strata: Cluster of each image, integers in any numbering [n].
        seed: Seed of all epochs.
        epoch: Number of the epoch, from 0.

    Raises:
        ValueError: ``strata`` is not one-dimensional, is empty, or does not hold integers.
    """
    cluster, sizes = clusters_of(strata)
    generator = np.random.default_rng((seed, epoch))
    return _spread(_grouped(cluster, generator), sizes, generator)


def balanced_order(strata: ArrayLike, seed: int, epoch: int) -> Indices:
    """Returns an order in which every batch has equally many images of every cluster, int64 [n].

    An epoch has n / M entries of each of M clusters. It holds a part of a larger cluster, and the next epoch continues
    with the rest; images of a smaller cluster are repeated (``repeats``). Over all epochs, the images of a cluster
    occur equally often, up to one. See ``stratified_order`` for arguments and errors.
    """
    cluster, sizes = clusters_of(strata)
    n, clusters = len(cluster), len(sizes)
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(sizes)[:-1])
    slots = np.diff(np.arange(clusters + 1) * n // clusters)
    picked = [_passes(members[c], seed, c, epoch * slots[c], slots[c]) for c in range(clusters)]
    return _spread(np.concatenate(picked), slots, np.random.default_rng((seed, epoch)))


def clustered_order(strata: ArrayLike, seed: int, epoch: int) -> Indices:
    """Returns an order in which every batch has few clusters, so that negatives are hard, int64 [n].

    An epoch holds every image once. Each cluster is shuffled and split into runs of 64 images, and the runs are
    shuffled. A batch of B images holds about B / 64 clusters. See ``stratified_order`` for arguments and errors.
    """
    cluster, sizes = clusters_of(strata)
    generator = np.random.default_rng((seed, epoch))
    grouped = _grouped(cluster, generator)
    starts = _place_in_cluster(sizes) % RUN == 0
    run = np.cumsum(starts) - 1
    return grouped[np.argsort(generator.permutation(run[-1] + 1)[run], kind="stable")]


#: Orders by the name that a configuration uses.
CLUSTER_ORDERS: dict[str, Callable[[ArrayLike, int, int], Indices]] = {
    "stratified": stratified_order,
    "balanced": balanced_order,
    "clustered": clustered_order,
}


def repeats(sizes: ArrayLike) -> NDArray[np.float64]:
    """Returns how often an image of each cluster occurs in an epoch of ``balanced_order``, on average [M]."""
    counts = np.asarray(sizes)
    return np.asarray(counts.sum() / len(counts) / counts)


def clusters_of(strata: ArrayLike) -> tuple[Indices, Indices]:
    """Returns the clusters numbered from 0 [n], and their sizes [M]."""
    given = np.asarray(strata)
    if given.ndim != 1 or given.size == 0:
        raise ValueError(f"strata of shape {given.shape}: pass one cluster per image, [n]")
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"strata of type {given.dtype}: pass integers")
    _, cluster, sizes = np.unique(given, return_inverse=True, return_counts=True)
    return cluster, sizes


def _grouped(cluster: Indices, generator: np.random.Generator) -> Indices:
    """Returns the images grouped by cluster and shuffled within each."""
    shuffled = generator.permutation(len(cluster))
    return shuffled[np.argsort(cluster[shuffled], kind="stable")]


def _place_in_cluster(sizes: Indices) -> Indices:
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _spread(grouped: Indices, sizes: Indices, generator: np.random.Generator) -> Indices:
    """Distributes images that are grouped by cluster so that every cluster occurs evenly."""
    offsets = generator.random(len(sizes))
    kept = sizes > 0
    key = (_place_in_cluster(sizes) + np.repeat(offsets, sizes)) / np.repeat(np.where(kept, sizes, 1), sizes)
    return grouped[np.argsort(key, kind="stable")].astype(np.int64, copy=False)


def _passes(members: Indices, seed: int, number: int, start: int, count: int) -> Indices:
    """Returns ``count`` entries from ``start`` of a cluster's members repeated without end, reshuffled in each pass."""
    first, skipped = divmod(start, len(members))
    passes = range(first, -(-(start + count) // len(members)))
    shuffled = [np.random.default_rng((seed, number, turn)).permutation(members) for turn in passes]
    return np.concatenate([members[:0], *shuffled])[skipped : skipped + count]
