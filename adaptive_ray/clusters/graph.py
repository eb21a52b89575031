"""Finds communities of the nearest-neighbour graph by greedy modularity over k-means cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adaptive_ray.clusters.vectors import Labels, Points, k_means, membership

#: Neighbours of a point; with 10 to 30 the number of communities changes by at most 2 on CIFAR-10 and MNIST.
NEIGHBOURS = 15
#: Number of k-means cells, which are merged to communities; at least three times that of communities.
CELLS = 600
#: Rounds in which single points change their community.
_ROUNDS = 20


class Dendrogram(NamedTuple):
    """The order in which cells are merged."""

    graph: Any  # the links, symmetric and sparse [n, n]
    cell: Labels  # cell of each point [n]
    joins: list[tuple[int, int]]  # pairs of cells; the second is merged into the community of the first
    modularity: dict[int, float]  # by number of communities

    def cut(self, communities: int) -> Labels:
        """Returns the community of each point [n] for a number of communities (at most the number of cells)."""
        count = len(self.joins) + 1
        community = np.arange(count)
        for kept, joined in self.joins[: max(count - communities, 0)]:
            community[community == joined] = kept
        return np.asarray(np.unique(community[self.cell], return_inverse=True)[1])

    def moved(self, labels: Labels, seed: int) -> Labels:
        """Moves single points to the community with the largest gain of modularity (Blondel et al. 2008).

        A random half of the points moves in each round, because moving all at once oscillates. A community may lose all
        its points.
        """
        generator = np.random.default_rng(seed)
        degree = np.asarray(self.graph.sum(1)).ravel()
        for _ in range(_ROUNDS):
            member = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
            gain = self.graph @ member - np.outer(degree, (degree @ member) / degree.sum())
            labels = np.where(generator.random(len(labels)) < 0.5, gain.argmax(1), labels)
        return np.asarray(np.unique(labels, return_inverse=True)[1])

    def purity(self, labels: Labels) -> float:
        """Returns the modularity relative to its maximum without links between communities; 0 for one community."""
        ends = np.bincount(labels, weights=np.asarray(self.graph.sum(1)).ravel())
        expected = float((ends**2).sum() / ends.sum() ** 2)
        links = self.graph.tocoo()
        within = float((labels[links.row] == labels[links.col]).mean())
        return (within - expected) / (1 - expected) if expected < 1 else 0.0


def communities(points: Points, seed: int, cells: int = CELLS) -> Dendrogram:
    """Merges cells greedily by modularity (Clauset, Newman, Moore 2004).

    Points are linked to their nearest neighbours, unweighted and undirected. Modularity is the fraction of links within
    communities, minus the expected fraction of a random graph with the same degrees.
    """
    cell = k_means(points, min(cells, len(points)), seed)
    graph = neighbour_graph(points)
    member = membership(cell, int(cell.max()) + 1)
    links = np.asarray((member @ graph @ member.T).todense())
    links /= links.sum()
    ends = links.sum(1)
    alive = np.ones(len(links), dtype=bool)
    gain = 2 * (links - np.outer(ends, ends))
    np.fill_diagonal(gain, -np.inf)
    modularity = float(np.trace(links) - (ends**2).sum())
    curve, joins = {len(links): modularity}, []
    for left in range(len(links) - 1, 0, -1):
        kept, joined = (int(index) for index in np.unravel_index(np.argmax(gain), gain.shape))
        modularity += float(gain[kept, joined])
        links[kept] += links[joined]
        links[:, kept] += links[:, joined]
        ends[kept] += ends[joined]
        alive[joined] = False
        changed = np.where(alive, 2 * (links[kept] - ends[kept] * ends), -np.inf)
        changed[kept] = -np.inf
        gain[kept], gain[:, kept] = changed, changed
        gain[joined], gain[:, joined] = -np.inf, -np.inf
        curve[left] = modularity
        joins.append((kept, joined))
    return Dendrogram(graph, cell, joins, curve)


def neighbour_graph(points: Points, neighbours: int = NEIGHBOURS) -> Any:
    """Returns the symmetric, sparse graph [n, n]: 1 if either point is a nearest neighbour of the other."""
    from sklearn.neighbors import kneighbors_graph

    graph = kneighbors_graph(points, min(neighbours, len(points) - 1), n_jobs=-1)
    return graph.maximum(graph.T).tocsr()
