"""Computes sample weights of global batches during training (method 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainables.batches import percentiles
from trainables.batches.sampling import Indices, clusters_of
from trainables.batches.weighting import relative_weights
from trainables.data import TrainingData
from trainables.settings import WeightSettings
from trainables.simclr.gather import gather_rows

#: Lower bound of a weight, where the mean is about 1.
_LEAST = 1e-6
#: Number of most and of least weighted images in a report.
_NAMED = 6
#: Least images per k-means cluster: in a cluster of two, both are equally far from the centre.
_EACH = 4


class SampleWeights:
    """Computes the weights of a batch's images in the loss.

    Raises:
        ValueError: ``data`` lacks centrality or strata that the settings need.
    """

    def __init__(self, settings: WeightSettings, data: TrainingData, device: torch.device) -> None:
        self._settings, self.device = settings, device
        self._centrality: Tensor | None = None
        self._strata: Tensor | None = None
        self._clusters = settings.clusters
        if settings.mode == "static":
            if data.centrality is None:
                raise ValueError(
                    "sample_weights.mode = static needs the data's centrality (distances to cluster centres), which is "
                    "missing; provide it or use mode batch"
                )
            self._centrality = torch.tensor(np.asarray(data.centrality, np.float32), device=device)
        if settings.centres == "strata":
            if data.strata is None:
                raise ValueError(
                    "sample_weights.centres = strata needs the data's strata (clusters), which are missing; provide "
                    "them or use kmeans"
                )
            strata, sizes = clusters_of(data.strata)
            self._strata, self._clusters = torch.tensor(strata, device=device), len(sizes)
        self._last: tuple[Indices, Tensor] | None = None

    def __call__(
        self, z_a: Tensor, z_b: Tensor, indices: Indices, progress: float, shard_sizes: Sequence[int], batches: int = 1
    ) -> Tensor | None:
        """Returns weights of this worker's images [b], up to a factor common to all workers; None without weights.

        Several ``batches`` may be weighted together: a worker passes its shard of the first one, then of the next.

        Args:
            z_a, z_b: Projections of both views of the images [b, d].
            indices: Indices of the images [b].
            progress: Fraction of the run's budget that has been used.
            shard_sizes: Number of images in every worker's shard of one batch.
        """
        settings = self._settings
        if settings.mode == "none":
            return None
        rows = on_device(indices, self.device)
        known = self._centrality
        rank = known[rows] if known is not None else self._within_batch(z_a, z_b, rows, shard_sizes, batches)
        # The loss divides by the mean over the global batch, which must not be 0.
        weights = relative_weights(rank, progress, settings.strength, settings.schedule).clamp(min=_LEAST)
        self._last = (indices, weights)
        return weights

    @torch.no_grad()
    def _within_batch(self, z_a: Tensor, z_b: Tensor, rows: Tensor, shard_sizes: Sequence[int], batches: int) -> Tensor:
        """Returns the percentiles of this worker's images within the global batches [b]."""
        z = F.normalize(F.normalize(z_a.float(), dim=1) + F.normalize(z_b.float(), dim=1), dim=1)
        strata = None if self._strata is None else self._strata[rows]
        # One message for both: cluster numbers are exact in float32.
        message = z if strata is None else torch.cat([z, strata[:, None].float()], dim=1)
        gathered, first = gather_rows(message, [batches * size for size in shard_sizes])
        own = slice(first, first + len(z))
        if strata is not None:
            return percentiles(gathered[:, :-1], gathered[:, -1].long(), self._clusters)[own]
        clusters = max(min(self._clusters, len(gathered) // _EACH), 1)
        # k-means is initialised with the first images, which must not depend on the number of workers.
        order = on_device(_in_order(shard_sizes, batches), self.device)
        ranks = percentiles(gathered[order], None, clusters)
        return torch.empty_like(ranks).scatter_(0, order, ranks)[own]

    def extremes(self) -> dict[str, list[tuple[int, float]]] | None:
        """Returns the most and least weighted images of this worker's last batch as (index, weight), or None.

        Synchronises with the device.
        """
        if self._last is None:
            return None
        indices, weights = self._last[0], self._last[1].cpu().numpy()
        order = np.argsort(-weights, kind="stable")
        count = max(min(_NAMED, len(order) // 2), 1)
        return {
            "most": [(int(indices[i]), float(weights[i])) for i in order[:count]],
            "least": [(int(indices[i]), float(weights[i])) for i in order[::-1][:count]],
        }


def _in_order(shard_sizes: Sequence[int], batches: int) -> NDArray[np.int64]:
    """Returns the rows of the first batch's images, then of the next one's, among all workers' rows [sum]."""
    sizes = np.asarray(shard_sizes)
    first = batches * (np.cumsum(sizes) - sizes)
    rows = [first[rank] + batch * n + np.arange(n) for batch in range(batches) for rank, n in enumerate(sizes)]
    return np.concatenate(rows)


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Copies ``values`` to the device without synchronisation."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
