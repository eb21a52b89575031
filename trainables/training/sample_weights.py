"""Method 5 within a run: the weights of a batch's images, over all workers."""

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

#: Of an image's weight, where the mean is about 1.
_LEAST = 1e-6
#: Images of each kind that a report names.
_NAMED = 6
#: Images of a batch for each of k-means' clusters, at least: in one of two, both are equally far from the centre.
_EACH = 4


class SampleWeights:
    """Weighs the images of a batch.

    Args:
        settings: How.
        data: Holds what weights are taken from beforehand.
        device: Where the run trains.

    Raises:
        ValueError: ``data`` lacks what the settings need.
    """

    def __init__(self, settings: WeightSettings, data: TrainingData, device: torch.device) -> None:
        self._settings, self.device = settings, device
        self._centrality: Tensor | None = None
        self._strata: Tensor | None = None
        self._clusters = settings.clusters
        if settings.mode == "static":
            if data.centrality is None:
                raise ValueError(
                    "sample_weights.mode = static weighs images by their place in the data's clusters, and there are "
                    "none: give the data's centrality, or use mode batch"
                )
            self._centrality = torch.tensor(np.asarray(data.centrality, np.float32), device=device)
        if settings.centres == "strata":
            if data.strata is None:
                raise ValueError(
                    "sample_weights.centres = strata takes the means of the data's clusters, and there are none: give "
                    "the data's strata, or use kmeans"
                )
            strata, sizes = clusters_of(data.strata)
            self._strata, self._clusters = torch.tensor(strata, device=device), len(sizes)
        self._last: tuple[Indices, Tensor] | None = None

    def __call__(
        self, z_a: Tensor, z_b: Tensor, indices: Indices, progress: float, shares: Sequence[int], batches: int = 1
    ) -> Tensor | None:
        """Weights of this worker's images [b], up to a factor that all workers share; None where all count alike.

        Args:
            z_a: Projections of their first views [b, d].
            z_b: Of their second views.
            indices: Which images [b].
            progress: Share of the run that is done.
            shares: Images that every worker has of one batch.
            batches: That are weighed as one; a worker has its share of the first, then of the next.
        """
        settings = self._settings
        if settings.mode == "none":
            return None
        rows = on_device(indices, self.device)
        known = self._centrality
        rank = known[rows] if known is not None else self._within_batch(z_a, z_b, rows, shares, batches)
        # The loss divides by the global batch's mean, which is not known here, and must not be 0.
        weights = relative_weights(rank, progress, settings.strength, settings.schedule).clamp(min=_LEAST)
        self._last = (indices, weights)
        return weights

    @torch.no_grad()
    def _within_batch(self, z_a: Tensor, z_b: Tensor, rows: Tensor, shares: Sequence[int], batches: int) -> Tensor:
        """Percentiles of this worker's images within the global batch, or within several as one [b]."""
        z = F.normalize(F.normalize(z_a.float(), dim=1) + F.normalize(z_b.float(), dim=1), dim=1)
        strata = None if self._strata is None else self._strata[rows]
        # In one message: whole numbers of clusters are exact in float32.
        message = z if strata is None else torch.cat([z, strata[:, None].float()], dim=1)
        everyone, first = gather_rows(message, [batches * share for share in shares])
        own = slice(first, first + len(z))
        if strata is not None:
            return percentiles(everyone[:, :-1], everyone[:, -1].long(), self._clusters)[own]
        clusters = max(min(self._clusters, len(everyone) // _EACH), 1)
        # k-means begins at the first images: the same ones on any number of workers.
        order = on_device(_in_order(shares, batches), self.device)
        ranks = percentiles(everyone[order], None, clusters)
        return torch.empty_like(ranks).scatter_(0, order, ranks)[own]

    def extremes(self) -> dict[str, list[tuple[int, float]]] | None:
        """The most and the least weighted images of this worker's last batch, as (index, weight); None without weights.

        It reads from the device: once a report.
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


def _in_order(shares: Sequence[int], batches: int) -> NDArray[np.int64]:
    """Where the images of the first batch stand, then those of the next, among all workers' rows [sum]."""
    share = np.asarray(shares)
    first = batches * (np.cumsum(share) - share)
    rows = [first[worker] + batch * n + np.arange(n) for batch in range(batches) for worker, n in enumerate(share)]
    return np.concatenate(rows)


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
