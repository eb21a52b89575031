"""Ways to count clusters. Each takes points and answers with labels and the scores that the number was chosen by."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adaptive_ray.clusters.graph import CELLS, communities, neighbour_graph
from adaptive_ray.clusters.vectors import Labels, Points, k_means, means, nearest

#: Points that are searched for a number, where that takes more than linear time.
_SEARCHED = 4_000
#: From here on a silhouette stands for "a reasonable structure" (Kaufman and Rousseeuw 1990).
_REASONABLE = 0.5
#: By this a graph's purity must exceed that of one Gaussian with the same covariance, or there is one cluster only.
_BEYOND_CHANCE = 0.05


class Found(NamedTuple):
    """What a method has found.

    Args:
        labels: From 0 on [n].
        scores: Of each number of clusters that was tried; the higher, the better.
        method: That decided.
        note: What a reader should know, or nothing.
    """

    labels: Labels
    scores: dict[int, float]
    method: str
    note: str = ""


def silhouette(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """k-means with the largest mean silhouette (Rousseeuw 1987)."""
    some = _some(points, seed)
    scores = _search(lambda k: _silhouette_of(some, k_means(some, k, seed)), limit) if m is None else {}
    return Found(k_means(points, m or _best(scores), seed, runs=3), scores, "silhouette")


def bic(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """The mixture of Gaussians with diagonal covariances with the lowest Bayesian information criterion."""
    from sklearn.mixture import GaussianMixture

    few = points[:, :32].astype(np.float64)
    floor = 1e-3 * float(few.var(0).mean())

    def fitted(k: int) -> Any:
        mixture = GaussianMixture(
            k, covariance_type="diag", init_params="k-means++", reg_covar=floor, max_iter=60, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 60 steps do not converge: the criterion hardly changes any more
            return mixture.fit(few)

    scores = _search(lambda k: -float(fitted(k).bic(few)), limit) if m is None else {}
    return Found(np.asarray(fitted(m or _best(scores)).predict(few)), scores, "bic")


def hdbscan(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """HDBSCAN (Campello et al. 2013) at the smallest cluster's size that leaves the fewest points as noise.

    In 16 dimensions: density means little in more. Noise goes to the cluster with the nearest mean.
    """
    from sklearn.cluster import HDBSCAN

    if m is not None:
        raise ValueError(f"method hdbscan finds the number of clusters itself; leave m = {m} out or use another method")
    few = points[:, :16]
    found: dict[int, tuple[float, Labels]] = {}
    for share in (0.002, 0.005, 0.01, 0.02, 0.04):
        labels = HDBSCAN(min_cluster_size=max(int(share * len(few)), 5), copy=True, n_jobs=-1).fit_predict(few)
        clusters, kept = int(labels.max()) + 1, float((labels >= 0).mean())
        if 2 <= clusters <= limit and kept > found.get(clusters, (0.0, labels))[0]:
            found[clusters] = kept, labels
    if not found:
        return Found(np.zeros(len(points), dtype=np.int64), {1: 1.0}, "hdbscan", "nothing is denser than the rest")
    scores = {clusters: kept for clusters, (kept, _) in sorted(found.items())}
    return Found(_without_noise(few, found[_best(scores)][1]), scores, "hdbscan")


def eigengap(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """Normalised cuts of the nearest-neighbour graph, at the largest gap in its spectrum (von Luxburg 2007).

    The score of k is the gap after the k-th eigenvalue. The first is always 1 and says nothing.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import eigsh

    graph = neighbour_graph(points)
    scale = diags(1 / np.sqrt(np.asarray(graph.sum(1)).ravel()))
    most = min(limit, len(points) - 2)
    tried = min(max(m or 0, 48), most)
    while True:  # most often a few eigenvalues tell; all of them are dear
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
    """Communities of the nearest-neighbour graph with the largest modularity (Newman 2006), or one cluster.

    There is one only if the graph of a single Gaussian of the same size and covariance splits as well.
    """
    cells = max(min(CELLS, 3 * limit), 4 * (m or 0))
    dendrogram = communities(points, seed, cells)
    scores = {k: value for k, value in sorted(dendrogram.modularity.items()) if k <= limit}
    labels = dendrogram.cut(m or _best(scores))
    moved = dendrogram.moved(labels, seed)
    if m is not None:  # a community that lost all its points is wanted nevertheless
        return Found(moved if len(np.unique(moved)) == m else labels, {}, "graph")
    gaussian = np.random.default_rng(seed).normal(size=points.shape) * points.std(0)
    chance = communities(gaussian.astype(np.float32), seed, cells)
    own = dendrogram.purity(moved)
    by_chance = chance.purity(chance.moved(chance.cut(_best(chance.modularity)), seed))
    if own < by_chance + _BEYOND_CHANCE:
        note = f"a single Gaussian's graph splits as well ({by_chance:.2f} of what is possible) as this one ({own:.2f})"
        return Found(np.zeros(len(points), dtype=np.int64), scores, "graph", note)
    return Found(moved, scores, "graph")


def auto(points: Points, seed: int, limit: int, m: int | None = None) -> Found:
    """``graph``, unless k-means separates better and well.

    Measured (benchmarks/README.md): in pretrained features all silhouettes are low and the graph's number is right; in
    few dimensions a graph takes one round cluster for several, and there silhouettes tell.
    """
    found = graph(points, seed, limit, m)
    if m is not None:
        return found
    by_means = silhouette(points, seed, limit)
    some = np.random.default_rng(seed).permutation(len(points))[:_SEARCHED]
    reached = _silhouette_of(points[some], found.labels[some])
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


def _some(points: Points, seed: int) -> Points:
    return points[np.random.default_rng(seed).permutation(len(points))[:_SEARCHED]]


def _silhouette_of(points: Points, labels: Labels) -> float:
    """The mean silhouette; -1 where it is not defined."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(points, labels)) if 1 < len(np.unique(labels)) < len(points) else -1.0


def _best(scores: dict[int, float]) -> int:
    return max(scores, key=lambda k: scores[k], default=1)


def _search(score: Callable[[int], float], limit: int) -> dict[int, float]:
    """Scores of 2, 3, ... with growing steps up to ``limit``, then of the numbers about the best."""
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
