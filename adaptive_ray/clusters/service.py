"""A data set's clusters as a Ray actor that all workers of all trials ask."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray

from adaptive_ray.clusters.clustering_store import clustering_of
from adaptive_ray.clusters.consequences import reduced_features
from adaptive_ray.clusters.vectors import Labels, Points
from trainables.batches import CLUSTER_ORDERS

#: Epochs whose orders are kept: candidates in a race are at different ones.
_KEPT = 8


class ClusterService:
    """The actor. Everything it answers follows from files and a seed: started again elsewhere, it answers the same.

    Args:
        folder: Features and clusters on disk; all nodes must reach it.
        encoder: That the features are from.
        method: See ``count_clusters``.
        m: A fixed number of clusters, or None.
        seed: Of the clusters and of the orders.
        order: Key of ``CLUSTER_ORDERS``; another name if nobody asks for orders.
    """

    def __init__(self, folder: str, encoder: str, method: str, m: int | None, seed: int, order: str) -> None:
        self._clustering = clustering_of(Path(folder), method, m, seed)
        self._folder, self._encoder, self._seed = Path(folder), encoder, seed
        self._order_of = CLUSTER_ORDERS.get(order)
        self._orders: dict[int, Future[Any]] = {}
        self._references: dict[str, Any] = {}
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="next epoch")

    def summary(self) -> dict[str, Any]:
        """M, sizes, method, scores, stability, notes, and the encoder."""
        found = self._clustering
        return {
            "m": found.m,
            "sizes": found.sizes.tolist(),
            "method": found.method,
            "scores": found.scores,
            "stability": found.stability,
            "notes": list(found.notes),
            "encoder": self._encoder,
        }

    def strata(self) -> Labels:
        """Each image's cluster, int64 [n]."""
        return self._clustering.labels

    def centrality(self) -> Any:
        """Percentile of each image's distance to its cluster's centre, float32 [n]: 0 is the centre, 1 the edge."""
        return self._clustering.centrality

    def features(self) -> Points:
        """What the encoder sees in each image, in its 16 first principal components: float32 [n, 16]."""
        return reduced_features(self._folder, self._seed)

    def reference(self, name: str) -> list[Any]:
        """A reference (in a list, so that Ray passes it on) to ``strata``, ``centrality`` or ``features``.

        One object for all that ask, which those on a node share without a copy.
        """
        if name not in self._references:
            self._references[name] = ray.put(getattr(self, name)())
        return [self._references[name]]

    def epoch_order(self, epoch: int) -> list[Any]:
        """A reference (in a list, so that Ray passes it on) to the epoch's order, int64 [n], in the object store.

        One object for all that ask, which those on a node share without a copy. The next epoch's is made meanwhile.
        """
        for wanted in (epoch, epoch + 1):
            if wanted not in self._orders:
                self._orders[wanted] = self._ahead.submit(self._made, wanted)
        order = self._orders[epoch].result()
        for old in list(self._orders)[:-_KEPT]:
            del self._orders[old]
        return [order]

    def _made(self, epoch: int) -> Any:
        assert self._order_of is not None, "this actor was started for no order"
        return ray.put(self._order_of(self._clustering.labels, self._seed, epoch))


def start_service(name: str, **arguments: Any) -> Any:
    """The actor of this name in this job, started unless it runs; ``arguments`` are those of ``ClusterService``."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ClusterService)
    return actor.options(name=name, get_if_exists=True).remote(**arguments)
