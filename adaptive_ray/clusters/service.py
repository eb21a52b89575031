"""A Ray actor that serves a data set's clusters to all workers of all trials."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray

from adaptive_ray.clusters.clustering_store import clustering_of
from adaptive_ray.clusters.consequences import reduced_features
from adaptive_ray.clusters.vectors import Labels, Points
from adaptive_ray.config.clusters import ClusterSettings
from trainables.batches import CLUSTER_ORDERS

#: Number of epoch orders that are kept: candidates may be at different epochs.
_KEPT = 8


class ClusterService:
    """The actor. Its results depend only on files and a seed, so it may be restarted on any node.

    The ``folder`` of features and clusters is accessible from all nodes. ``order`` is a key of ``CLUSTER_ORDERS``, or
    any other name if no orders are needed.
    """

    def __init__(self, folder: Path, settings: ClusterSettings, seed: int, order: str) -> None:
        self._clustering = clustering_of(folder, settings, seed)
        self._folder, self._seed = folder, seed
        self._order_of = CLUSTER_ORDERS.get(order)
        self._orders: dict[int, Future[Any]] = {}
        self._references: dict[str, Any] = {}
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="next epoch")

    def strata(self) -> Labels:
        """Returns the cluster of each image, int64 [n]."""
        return self._clustering.labels

    def centrality(self) -> Any:
        """Returns the percentile of each image's distance to its cluster's centre, float32 [n]: 0 is the centre."""
        return self._clustering.centrality

    def features(self) -> Points:
        """Returns the first 16 principal components of the features, float32 [n, 16]."""
        return reduced_features(self._folder, self._seed)

    def reference(self, name: str) -> list[Any]:
        """Returns a reference to ``strata``, ``centrality`` or ``features`` (in a list, so that Ray keeps it).

        All callers get the same object; those on one node share its memory.
        """
        if name not in self._references:
            self._references[name] = ray.put(getattr(self, name)())
        return [self._references[name]]

    def epoch_order(self, epoch: int) -> list[Any]:
        """Returns a reference to the order of an epoch, int64 [n] (in a list, so that Ray keeps it).

        All callers get the same object; those on one node share its memory. The order of the next epoch is computed in
        the background.
        """
        for wanted in (epoch, epoch + 1):
            if wanted not in self._orders:
                self._orders[wanted] = self._ahead.submit(self._compute, wanted)
        order = self._orders[epoch].result()
        for old in list(self._orders)[:-_KEPT]:
            del self._orders[old]
        return [order]

    def _compute(self, epoch: int) -> Any:
        assert self._order_of is not None, "this actor was started without an order"
        return ray.put(self._order_of(self._clustering.labels, self._seed, epoch))


def start_service(name: str, folder: Path, settings: ClusterSettings, seed: int, order: str) -> Any:
    """Returns the ``ClusterService`` of this name in this job, and starts it if needed."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ClusterService)
    return actor.options(name=name, get_if_exists=True).remote(folder, settings, seed, order)
