"""The gradient of batches that are each other's negatives: cut up where they do not fit, weighted image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.captured import CapturedSteps
from trainables.compiling import compiled
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
        capture: Whether to replay whole batches as CUDA graphs; for one worker, a loss that never waits for the device,
            and images that all count alike.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: Loader,
        loss: Callable[..., Tensor],
        weights: SampleWeights,
        micro_batch: int,
        autocast: AbstractContextManager[object],
        *,
        capture: bool = False,
    ) -> None:
        self._network, self._loader, self.loss, self._weights = network, loader, loss, weights
        self.micro_batch, self._autocast = micro_batch, autocast
        self.forward: Callable[[Tensor], Tensor] = network  # of a whole share; parts of one have too many sizes
        self._captured = CapturedSteps(self._step, network) if capture else None

    def compile(self) -> None:
        """Fuses the kernels of the network and, on a GPU, of the augmentation: once a batch size, when it is met."""
        self.forward, self._loader.augment.views = compiled(self._network), compiled(self._loader.augment.views)
        if self._captured is not None:
            self._captured = CapturedSteps(self._step, self._network)

    def prepare(self, position: int, batch_size: int) -> None:
        """Makes the first step of this size as fast as the next, where steps are captured."""
        share = self._loader.shares(batch_size)[self._loader.worker]
        if self._captured is None or share > self.micro_batch or not self._captured.lacks(share):
            return
        indices, draw = self._loader.ingredients(position, batch_size)
        self._captured.capture(self._loader.feed.batch(indices), draw.packed())

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
        own_share = shares[self._loader.worker]
        if self._captured is not None and len(positions) == 1 and own_share in self._captured:
            indices, draw = self._loader.ingredients(positions[0], batch_size)
            return self._captured(self._loader.feed.batch(indices), draw.packed(), float(weights.sum()))
        parts = -(-max(shares) // self.micro_batch)  # equally many on all workers
        views = [v for at in positions for v in self._loader.batch(at, batch_size, parts, since=positions[0])]
        indices = np.concatenate([self._loader.indices(at, batch_size) for at in positions])
        several = len(positions) > 1  # batches that count unequally in one loss
        own = on_device(np.repeat(weights, own_share), self._weights.device) if several else None

        def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
            images = self._weights(z_a, z_b, indices, progress, shares, len(positions))
            if own is not None:
                images = own if images is None else images * own
            together = [len(positions) * share for share in shares]
            return self.loss(z_a, z_b, weights=images, shares=together) * float(weights.sum())

        if len(views) > 1:
            return cached_backward(self._network, views, loss, self._autocast)
        return self._backward(views[0](), loss)

    def _step(self, images: Tensor, packed: Tensor, weight: Tensor) -> Tensor:
        """The whole of one batch on the device, for a graph."""
        views = self._loader.augment.views(images.repeat(2, 1, 1, 1), packed)
        return self._backward(views, lambda z_a, z_b: self.loss(z_a, z_b, shares=[len(images)]) * weight)

    def _backward(self, views: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with self._autocast:
            z_a, z_b = self.forward(views).chunk(2)
        value = loss(z_a, z_b)
        value.backward()
        return value.detach()
