"""The gradient of batches that are each other's negatives: cut up where they do not fit, weighted image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.loader import Loader
from trainables.simclr.gradcache import cached_backward
from trainables.weights import SampleWeights, on_device


class ContrastiveGradients:
    """Adds gradients of the loss to a network's.

    Args:
        network: Views -> projections; wrapped in ``DistributedDataParallel`` with several workers.
        loader: Of the batches.
        loss: See ``ContrastiveLoss``; its temperature is set.
        weights: Of images.
        micro_batch: Images of a worker in the network at once.
        autocast: Under which the network runs.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: Loader,
        loss: Callable[..., Tensor],
        weights: SampleWeights,
        micro_batch: int,
        autocast: AbstractContextManager[object],
    ) -> None:
        self._network, self._loader, self.loss, self._weights = network, loader, loss, weights
        self.micro_batch, self._autocast = micro_batch, autocast

    def add(self, positions: Sequence[int], batch_size: int, weights: NDArray[np.float64], progress: float) -> Tensor:
        """Of the sum of the batches' losses, each times its weight, over all of them as negatives.

        Args:
            positions: Of the batches in the stream, one after the other.
            batch_size: Of each.
            weights: Of each.
            progress: Share of the run that is done.

        Returns:
            The weighted sum.
        """
        shares = self._loader.shares(batch_size)
        parts = -(-max(shares) // self.micro_batch)  # equally many on all workers
        views = [v for at in positions for v in self._loader.batch(at, batch_size, parts, since=positions[0])]
        indices = np.concatenate([self._loader.indices(at, batch_size) for at in positions])
        several = len(positions) > 1  # batches that count unequally in one loss
        own = on_device(np.repeat(weights, shares[self._loader.worker]), self._weights.device) if several else None

        def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
            images = self._weights(z_a, z_b, indices, progress, shares, len(positions))
            if own is not None:
                images = own if images is None else images * own
            together = [len(positions) * share for share in shares]
            return self.loss(z_a, z_b, weights=images, shares=together) * float(weights.sum())

        if len(views) > 1:
            return cached_backward(self._network, views, loss, self._autocast)
        with self._autocast:
            z_a, z_b = self._network(views[0]()).chunk(2)
        value = loss(z_a, z_b)
        value.backward()
        return value.detach()
