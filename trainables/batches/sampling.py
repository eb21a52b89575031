"""Orders of an epoch that know the images' clusters. No batch size is named: a batch is any B consecutive entries.

An order is a function of (strata, seed, epoch) alone, so ``partial(stratified_order, strata, seed)`` is what
``SampleStream`` takes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]

#: Images of one cluster that ``clustered_order`` keeps together.
RUN = 64


def stratified_order(strata: ArrayLike, seed: int, epoch: int) -> Indices:
    """Every batch holds every cluster in the data set's proportions, and an epoch every image once: int64 [n].

    With ``u_c`` drawn per cluster, the j-th (shuffled) member of cluster ``c`` with ``n_c`` members gets the key
    ``(j + u_c) / n_c``, and keys are sorted. Any B consecutive entries then hold about ``B n_c / n`` of cluster ``c``,
    off by 2 at most, for every B at once. The last images of an epoch and the first of the next one are two stretches.

    Args:
        strata: Each image's cluster, whole numbers in any numbering [n].
        seed: Fixes all epochs.
        epoch: Which one, from 0 on.

    Raises:
        ValueError: ``strata`` is not one-dimensional, is empty, or holds anything but whole numbers.
    """
    cluster, sizes = clusters_of(strata)
    generator = np.random.default_rng((seed, epoch))
    return _spread(_grouped(cluster, generator), sizes, generator)


def balanced_order(strata: ArrayLike, seed: int, epoch: int) -> Indices:
    """Every batch holds equally much of every cluster: int64 [n].

    An epoch has as many entries as there are images, n / M of each of M clusters. Of a larger cluster it holds a part,
    and the next epoch continues with the remaining ones; a smaller one is repeated (``repeats``). Over the epochs a
    cluster's images come equally often, but for one. Arguments and errors: see ``stratified_order``.
    """
    cluster, sizes = clusters_of(strata)
    n, clusters = len(cluster), len(sizes)
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(sizes)[:-1])
    slots = np.diff(np.arange(clusters + 1) * n // clusters)
    picked = [_passes(members[c], seed, c, epoch * slots[c], slots[c]) for c in range(clusters)]
    return _spread(np.concatenate(picked), slots, np.random.default_rng((seed, epoch)))


def clustered_order(strata: ArrayLike, seed: int, epoch: int) -> Indices:
    """Every batch holds few clusters, so that its negatives are hard, and an epoch every image once: int64 [n].

    Each cluster, shuffled, is cut into runs of 64 images, and the runs are shuffled. A batch of B holds about B / 64
    clusters and never two whole epochs' worth of one. Arguments and errors: see ``stratified_order``.
    """
    cluster, sizes = clusters_of(strata)
    generator = np.random.default_rng((seed, epoch))
    grouped = _grouped(cluster, generator)
    starts = _place_in_cluster(sizes) % RUN == 0
    run = np.cumsum(starts) - 1
    return grouped[np.argsort(generator.permutation(run[-1] + 1)[run], kind="stable")]


#: What a configuration may ask for, beside plain shuffling.
CLUSTER_ORDERS: dict[str, Callable[[ArrayLike, int, int], Indices]] = {
    "stratified": stratified_order,
    "balanced": balanced_order,
    "clustered": clustered_order,
}


def repeats(sizes: ArrayLike) -> NDArray[np.float64]:
    """How often an image of each cluster comes in an epoch of ``balanced_order``, on average [M]."""
    counts = np.asarray(sizes)
    return np.asarray(counts.sum() / len(counts) / counts)


def clusters_of(strata: ArrayLike) -> tuple[Indices, Indices]:
    """Clusters numbered from 0 on [n], and their sizes [M]."""
    given = np.asarray(strata)
    if given.ndim != 1 or given.size == 0:
        raise ValueError(f"strata of shape {given.shape} are none: give one cluster for each image, [n]")
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"strata of type {given.dtype} are none: clusters are whole numbers")
    _, cluster, sizes = np.unique(given, return_inverse=True, return_counts=True)
    return cluster, sizes


def _grouped(cluster: Indices, generator: np.random.Generator) -> Indices:
    """Images cluster after cluster, each cluster's in shuffled order."""
    shuffled = generator.permutation(len(cluster))
    return shuffled[np.argsort(cluster[shuffled], kind="stable")]


def _place_in_cluster(sizes: Indices) -> Indices:
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _spread(grouped: Indices, sizes: Indices, generator: np.random.Generator) -> Indices:
    """Images that stand cluster after cluster, spread so that each cluster comes evenly."""
    offsets = generator.random(len(sizes))
    kept = sizes > 0
    key = (_place_in_cluster(sizes) + np.repeat(offsets, sizes)) / np.repeat(np.where(kept, sizes, 1), sizes)
    return grouped[np.argsort(key, kind="stable")].astype(np.int64, copy=False)


def _passes(members: Indices, seed: int, number: int, start: int, count: int) -> Indices:
    """Entries from ``start`` on of an endless sequence: a cluster's members, reshuffled in each pass."""
    first, skipped = divmod(start, len(members))
    passes = range(first, -(-(start + count) // len(members)))
    shuffled = [np.random.default_rng((seed, number, turn)).permutation(members) for turn in passes]
    return np.concatenate([members[:0], *shuffled])[skipped : skipped + count]
