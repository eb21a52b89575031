"""Counts the clusters of feature vectors, and assigns each vector to one."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptive_ray.clusters.methods import METHODS, Found, Method
from adaptive_ray.clusters.vectors import Labels, Points, Projection, chunks, k_means, means, nearest

#: Vectors on which clusters are counted; more are needed for more than 200 clusters.
SAMPLE = 20_000
#: Principal components in which they are counted.
_DIMENSIONS = 128
#: Maximum number of clusters.
_MAX_CLUSTERS = 300
#: Number of k-means cells by which the other vectors are assigned.
_CELLS = 1_000
#: Number of resamples of 80 % that measure the stability.
_RESAMPLES = 3


@dataclass(frozen=True)
class Clustering:
    """Clusters of n feature vectors.

    Args:
        m: Number of clusters.
        labels: Cluster of each vector, starting at 0, larger clusters first: int64 [n].
        sizes: Sizes of the clusters, int64 [m].
        centrality: Percentile in (0, 1) of each vector's distance to the mean of its cluster, within the cluster: 0 is
            the centre, 1 the edge; float32 [n].
        method: The method that found the number, or ``fixed``.
        scores: Score of each number that was tried; higher is better. Empty for a fixed number.
        stability: Mean adjusted Rand index between these clusters and those of resamples of 80 %; 1 is identical.
        notes: Remarks for users, such as a fallback.
    """

    m: int
    labels: Labels
    sizes: Labels
    centrality: NDArray[np.float32]
    method: str
    scores: dict[int, float]
    stability: float
    notes: tuple[str, ...] = ()


def count_clusters(
    features: ArrayLike, method: str = "auto", seed: int = 0, *, m: int | None = None, sample: int = SAMPLE
) -> Clustering:
    """Clusters feature vectors and, unless ``m`` is given, finds the number of clusters.

    Clusters are counted on a sample in at most 128 principal components; the other vectors are assigned by the nearest
    of many small cells. ``features`` may be a memory map of any float type.

    Args:
        features: Float [n, d].
        method: ``graph`` (modularity of the nearest-neighbour graph), ``silhouette`` (k-means), ``bic`` (Gaussian
            mixture), ``hdbscan``, ``eigengap``, or ``auto``: the graph unless k-means separates better.
        seed: Random seed; the same seed gives the same clusters.
        m: A fixed number of clusters.
        sample: Maximum number of vectors on which clusters are counted.

    Raises:
        ValueError: Features have a wrong shape or type or are not finite, the method is unknown, or ``m`` is below 1 or
            above the number of distinct vectors.
    """
    vectors = _checked(features)
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(METHODS)}"
        raise ValueError(f"method {method!r} is unknown; {hint}")
    n = len(vectors)
    if m is not None and not 1 <= m <= n:
        raise ValueError(f"m = {m} is out of range: use 1 to the number of images ({n:,})")
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:sample])
    drawn = vectors[chosen].astype(np.float32)
    distinct = len(np.unique(drawn, axis=0))
    projection = Projection.of(drawn, _DIMENSIONS, seed)
    points = projection(drawn)
    if m is not None and m > distinct and n <= sample:
        raise ValueError(f"m = {m}: only {distinct:,} of the {n:,} images differ; lower m or remove duplicates")
    found, stability = _found(points, METHODS[method], method, seed, m, distinct)
    labels = _assign_all(vectors, projection, points, chosen, found.labels, seed)
    sizes = np.bincount(labels)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    rank = np.zeros(len(sizes), dtype=np.int64)
    rank[order] = np.arange(len(order))
    labels, sizes = rank[labels], sizes[order]
    notes = [found.note] if found.note else []
    if (alone := int((sizes == 1).sum())) and n > 1:
        notes.append(f"{alone} clusters have only one image")
    if distinct < len(drawn):
        notes.append(f"{len(drawn) - distinct:,} of {len(drawn):,} images are duplicates of others")
    centrality = _centrality(vectors, labels, len(sizes))
    return Clustering(len(sizes), labels, sizes, centrality, found.method, found.scores, stability, tuple(notes))


def _checked(features: ArrayLike) -> NDArray[Any]:
    vectors = np.asanyarray(features)
    if vectors.ndim != 2 or 0 in vectors.shape or not np.issubdtype(vectors.dtype, np.floating):
        raise ValueError(
            f"features of type {vectors.dtype} and shape {vectors.shape}: give floating-point numbers [n, d], n, d >= 1"
        )
    for rows in chunks(len(vectors)):
        if not (finite := np.isfinite(vectors[rows]).all(1)).all():
            bad = rows.start + int(np.argmin(finite))
            raise ValueError(f"features of image {bad} are not finite (NaN or infinite); fix or remove this image")
    return vectors


def _found(points: Points, method: Method, name: str, seed: int, m: int | None, distinct: int) -> tuple[Found, float]:
    """Returns the clusters of the sample and their stability."""
    limit = min(_MAX_CLUSTERS, distinct - 1, max(len(points) // 10, min(len(points) // 4, 20)))
    if m == 1 or (m is None and limit < 2):
        note = "" if m else "all features are equal" if distinct == 1 else "too few images to count clusters"
        return Found(np.zeros(len(points), dtype=np.int64), {}, "fixed" if m else name, note), 1.0
    if m is not None and m > limit:  # almost as many clusters as images
        return Found(k_means(points, m, seed), {}, "fixed"), float("nan")
    found = method(points, seed, limit, m)
    if m is not None:
        found = found._replace(method="fixed", scores={})
    clusters = len(np.unique(found.labels))
    again = method if m is not None else METHODS[found.method]
    if found.method != "hdbscan":
        again = partial(again, m=clusters)
    return found, _stability(points, found.labels, again, seed, limit) if clusters > 1 else 1.0


def _stability(points: Points, labels: Labels, again: Method, seed: int, limit: int) -> float:
    from sklearn.metrics import adjusted_rand_score

    agreement = []
    for number in range(_RESAMPLES):
        generator = np.random.default_rng((seed, number))
        some = generator.permutation(len(points))[: max(int(0.8 * len(points)), 2)]
        other = again(points[some], seed + 1 + number, limit).labels
        agreement.append(float(adjusted_rand_score(labels[some], other)))
    return float(np.mean(agreement))


def _assign_all(
    vectors: NDArray[Any], projection: Projection, points: Points, chosen: Labels, labels: Labels, seed: int
) -> Labels:
    """Assigns all vectors: the sample keeps its labels, the others get that of the nearest cell."""
    if len(chosen) == len(vectors):
        return labels
    # Each cell is within one cluster.
    cell, owner = np.zeros_like(labels), np.empty(0, dtype=np.int64)
    for cluster in range(int(labels.max()) + 1):
        own = np.flatnonzero(labels == cluster)
        if not len(own):
            continue
        cell[own] = len(owner) + k_means(points[own], max(len(own) * _CELLS // len(labels), 1), seed)
        owner = np.append(owner, np.full(int(cell[own].max()) + 1 - len(owner), cluster))
    centres = means(points, cell, len(owner))
    everything = np.empty(len(vectors), dtype=np.int64)
    for rows in chunks(len(vectors)):
        everything[rows] = owner[nearest(projection(vectors[rows]), centres)]
    everything[chosen] = labels
    return everything


def _centrality(vectors: NDArray[Any], labels: Labels, count: int) -> NDArray[np.float32]:
    sizes = np.bincount(labels, minlength=count)
    centres = np.zeros((count, vectors.shape[1]))
    for rows in chunks(len(vectors)):
        own, part = labels[rows], vectors[rows]
        centres += means(part, own, count) * np.bincount(own, minlength=count)[:, None]
    centres /= sizes[:, None]
    distance = np.empty(len(vectors))
    for rows in chunks(len(vectors)):
        distance[rows] = np.linalg.norm(vectors[rows].astype(np.float32) - centres[labels[rows]], axis=1)
    order = np.lexsort((distance, labels))
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    centrality = np.empty(len(labels), dtype=np.float32)
    centrality[order] = (place + 0.5) / np.repeat(sizes, sizes)
    return centrality
