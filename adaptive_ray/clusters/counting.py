"""How many clusters there are, and which image is in which."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptive_ray.clusters.methods import METHODS, Found, Method
from adaptive_ray.clusters.vectors import Labels, Points, Projection, chunks, k_means, means, nearest

#: Points that clusters are counted on; the rest joins them. More than 200 clusters need more.
SAMPLE = 20_000
#: Principal components that they are counted in.
_DIMENSIONS = 128
#: Clusters that are looked for, at most.
_MOST = 300
#: Cells by which the rest of the data joins the clusters.
_CELLS = 1_000
#: Resamples of 80 % that are clustered again to see whether the same comes out.
_RESAMPLES = 3


@dataclass(frozen=True)
class Clustering:
    """Clusters of n feature vectors.

    Args:
        m: Their number.
        labels: Each vector's cluster, from 0 on, larger clusters first: int64 [n].
        sizes: Of the clusters, int64 [m].
        centrality: Percentile in (0, 1) of each vector's distance to its cluster's mean, among its cluster's: 0 is the
            centre, 1 the edge; float32 [n].
        method: That found the number, or ``fixed``.
        scores: Of the numbers that were tried; the higher, the better. Empty for a fixed number.
        stability: Adjusted Rand index between these clusters and those of resamples of 80 %, mean; 1 is the same.
        notes: What a reader should know, such as a fallback.
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
    """Clusters feature vectors, and finds how many clusters there are unless ``m`` says so.

    They are counted on a sample in at most 128 principal components; the rest joins by the nearest of small cells.
    Memory grows with the labels only: ``features`` may be a memory map of any float type.

    Args:
        features: Float [n, d].
        method: ``graph`` (modularity of the nearest-neighbour graph), ``silhouette`` (k-means), ``bic`` (Gaussian
            mixture), ``hdbscan``, ``eigengap``, or ``auto``: the graph unless k-means separates better.
        seed: Of everything random; the same seed gives the same clusters.
        m: A fixed number of clusters.
        sample: Vectors that clusters are counted on, at most.

    Raises:
        ValueError: Features are no such array or not finite, the method is unknown, or ``m`` is below 1 or more than
            there are distinct vectors.
    """
    vectors = _checked(features)
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(METHODS)}"
        raise ValueError(f"method {method!r} is none of the ways to count clusters; {hint}")
    n = len(vectors)
    if m is not None and not 1 <= m <= n:
        raise ValueError(f"m = {m}: there must be at least 1 cluster and at most as many as images ({n:,})")
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:sample])
    drawn = vectors[chosen].astype(np.float32)
    distinct = len(np.unique(drawn, axis=0))
    projection = Projection.of(drawn, _DIMENSIONS, seed) if distinct > 1 else Projection.none(drawn)
    points = projection(drawn)
    if m is not None and m > distinct and n <= sample:
        raise ValueError(f"m = {m}: only {distinct:,} of the {n:,} images differ; lower m or remove duplicates")
    found, stability = _found(points, METHODS[method], method, seed, m, distinct)
    labels = _everywhere(vectors, projection, points, chosen, found.labels, seed)
    sizes = np.bincount(labels)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    rank = np.zeros(len(sizes), dtype=np.int64)
    rank[order] = np.arange(len(order))
    labels, sizes = rank[labels], sizes[order]
    notes = [found.note] if found.note else []
    if (alone := int((sizes == 1).sum())) and n > 1:
        notes.append(f"{alone} of the clusters have one image only")
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
    """Labels of the sample, and how stable they are."""
    limit = min(_MOST, distinct - 1, max(len(points) // 10, min(len(points) // 4, 20)))
    if m == 1 or (m is None and limit < 2):
        note = "" if m else "all features are equal" if distinct == 1 else "too few images to count clusters"
        return Found(np.zeros(len(points), dtype=np.int64), {}, "fixed" if m else name, note), 1.0
    if m is not None and m > limit:  # nearly as many clusters as images
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


def _everywhere(
    vectors: NDArray[Any], projection: Projection, points: Points, chosen: Labels, labels: Labels, seed: int
) -> Labels:
    """The sample keeps its labels; all others take that of the nearest cell of the sample."""
    if len(chosen) == len(vectors):
        return labels
    # Cells within each cluster: no cell belongs to two.
    cell, owner = np.zeros_like(labels), np.empty(0, dtype=np.int64)
    for cluster in range(int(labels.max()) + 1):
        own = np.flatnonzero(labels == cluster)
        if not len(own):
            continue
        cell[own] = len(owner) + k_means(points[own], max(len(own) * _CELLS // len(labels), 1), seed)
        owner = np.append(owner, np.full(int(cell[own].max()) + 1 - len(owner), cluster))
    centres = means(points, cell, len(owner))
    everyone = np.empty(len(vectors), dtype=np.int64)
    for rows in chunks(len(vectors)):
        everyone[rows] = owner[nearest(projection(vectors[rows]), centres)]
    everyone[chosen] = labels
    return everyone


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
