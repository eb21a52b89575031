"""Methods that count clusters. Each returns labels, and the scores by which the number was chosen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adaptive_ray.clusters.graph import CELLS, communities, neighbour_graph
from adaptive_ray.clusters.vectors import Labels, Points, k_means, means, nearest

#: Number of points for methods that take more than linear time.
_SUBSET = 4_000
#: Minimum silhouette of "a reasonable structure" (Kaufman and Rousseeuw 1990).
_REASONABLE = 0.5
#: Margin by which a graph's purity must exceed that of a single Gaussian of the same covariance.
_MARGIN = 0.05


class Found(NamedTuple):
    """The result of a method."""

    labels: Labels  # cluster of each point, starting at 0 [n]
    scores: dict[int, float]  # of each number of clusters that was tried; higher is better
    method: str  # that decided
    note: str = ""  # for users


def silhouette(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """Uses k-means and the largest mean silhouette (Rousseeuw 1987)."""
    some = _some(points, seed)
    scores = _search(lambda k: _silhouette_of(some, k_means(some, k, seed)), limit) if m is None else {}
    return Found(k_means(points, m or _best(scores), seed, runs=3), scores, "silhouette")


def bic(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """Uses Gaussian mixtures with diagonal covariances and the lowest Bayesian information criterion."""
    from sklearn.mixture import GaussianMixture

    few = points[:, :32].astype(np.float64)
    floor = 1e-3 * float(few.var(0).mean())

    def fitted(k: int) -> Any:
        mixture = GaussianMixture(
            k, covariance_type="diag", init_params="k-means++", reg_covar=floor, max_iter=60, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged, but the criterion hardly changes
            return mixture.fit(few)

    scores = _search(lambda k: -float(fitted(k).bic(few)), limit) if m is None else {}
    return Found(np.asarray(fitted(m or _best(scores)).predict(few)), scores, "bic")


def hdbscan(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """Uses HDBSCAN (Campello et al. 2013) with the minimum cluster size that leaves the fewest points as noise.

    It runs in 16 dimensions, because densities are not meaningful in more. Noise is assigned to the nearest mean.
    """
    from sklearn.cluster import HDBSCAN

    if m is not None:
        raise ValueError(f"method hdbscan finds the number of clusters itself; remove m = {m} or use another method")
    few = points[:, :16]
    found: dict[int, tuple[float, Labels]] = {}
    for share in (0.002, 0.005, 0.01, 0.02, 0.04):
        labels = HDBSCAN(min_cluster_size=max(int(share * len(few)), 5), copy=True, n_jobs=-1).fit_predict(few)
        clusters, kept = int(labels.max()) + 1, float((labels >= 0).mean())
        if 2 <= clusters <= limit and kept > found.get(clusters, (0.0, labels))[0]:
            found[clusters] = kept, labels
    if not found:
        return Found(np.zeros(len(points), dtype=np.int64), {1: 1.0}, "hdbscan", "no region is denser than the others")
    scores = {clusters: kept for clusters, (kept, _) in sorted(found.items())}
    return Found(_without_noise(few, found[_best(scores)][1]), scores, "hdbscan")


def eigengap(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """Uses normalised cuts of the nearest-neighbour graph at the largest gap of its spectrum (von Luxburg 2007).

    The score of k is the gap after the k-th eigenvalue, from k = 2 on: the first eigenvalue is always 1.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import eigsh

    graph = neighbour_graph(points)
    scale = diags(1 / np.sqrt(np.asarray(graph.sum(1)).ravel()))
    most = min(limit, len(points) - 2)
    tried = min(max(m or 0, 48), most)
    while True:  # usually a few eigenvalues suffice
        start = np.random.default_rng(seed).random(len(points))
        values, vectors = eigsh(scale @ graph @ scale, k=tried + 1, which="LA", v0=start, tol=1e-4)
        order = np.argsort(-values)
        values, vectors = values[order], vectors[:, order]
        if m or tried == most or values[-1] < 0.9:
            break
        tried = min(3 * tried, most)
    scores = {k: float(values[k - 1] - values[k]) for k in range(2, tried + 1)}
    best = m or _best(scores)
    rows = vectors[:, :best] / np.maximum(np.linalg.norm(vectors[:, :best], axis=1, keepdims=True), 1e-12)
    return Found(k_means(rows.astype(np.float32), best, seed, runs=3), scores, "eigengap")


def graph(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """Uses communities of the nearest-neighbour graph with the largest modularity (Newman 2006).

    Returns one cluster if the graph of a single Gaussian of the same size and covariance has the same purity.
    """
    cells = max(min(CELLS, 3 * limit), 4 * (m or 0))
    dendrogram = communities(points, seed, cells)
    scores = {k: value for k, value in sorted(dendrogram.modularity.items()) if k <= limit}
    labels = dendrogram.cut(m or _best(scores))
    moved = dendrogram.moved(labels, seed)
    if m is not None:  # keep communities that lost all points
        return Found(moved if len(np.unique(moved)) == m else labels, {}, "graph")
    gaussian = np.random.default_rng(seed).normal(size=points.shape) * points.std(0)
    reference = communities(gaussian.astype(np.float32), seed, cells)
    own = dendrogram.purity(moved)
    expected = reference.purity(reference.moved(reference.cut(_best(reference.modularity)), seed))
    if own < expected + _MARGIN:
        note = f"no clusters: the graph has purity {own:.2f}, that of a single Gaussian {expected:.2f}"
        return Found(np.zeros(len(points), dtype=np.int64), scores, "graph", note)
    return Found(moved, scores, "graph")


def auto(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """Uses ``graph``, unless k-means has a larger silhouette of at least 0.5.

    Measured (benchmarks/README.md): on pretrained features all silhouettes are low and ``graph`` finds the right
    number; in few dimensions ``graph`` splits round clusters and silhouettes are reliable.
    """
    found = graph(points, seed, limit, m)
    if m is not None:
        return found
    by_means = silhouette(points, seed, limit)
    reached = _silhouette_of(_some(points, seed), _some(found.labels, seed))
    if max(by_means.scores.values(), default=-1.0) > max(reached, _REASONABLE):
        return by_means
    return found


Method = Callable[..., Found]
METHODS: dict[str, Method] = {
    "auto": auto,
    "graph": graph,
    "silhouette": silhouette,
    "bic": bic,
    "hdbscan": hdbscan,
    "eigengap": eigengap,
}


def _some(rows: Any, seed: int) -> Any:
    return rows[np.random.default_rng(seed).permutation(len(rows))[:_SUBSET]]


def _silhouette_of(points: Points, labels: Labels) -> float:
    """Returns the mean silhouette; -1 where it is undefined."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(points, labels)) if 1 < len(np.unique(labels)) < len(points) else -1.0


def _best(scores: dict[int, float]) -> int:
    return max(scores, key=lambda k: scores[k], default=1)


def _search(score: Callable[[int], float], limit: int) -> dict[int, float]:
    """Returns scores of 2, 3, ... with growing steps up to ``limit``, then of numbers around the best."""
    tried: dict[int, float] = {}
    k = 2
    while k <= limit:
        tried[k] = score(k)
        k = max(k + 1, round(1.15 * k))
    if not tried:
        return {}
    best = _best(tried)
    below, above = max((k for k in tried if k < best), default=best), min((k for k in tried if k > best), default=best)
    between = [k for k in range(below + 1, above) if k not in tried]
    tried |= {k: score(k) for k in between[:: max(len(between) // 8, 1)]}
    return dict(sorted(tried.items()))


def _without_noise(points: Points, labels: Labels) -> Labels:
    kept = labels >= 0
    centres = means(points[kept], labels[kept], int(labels.max()) + 1)
    return np.where(kept, labels, nearest(points, centres))
