"""The gradient of batches that are each other's negatives: cut up where they do not fit, weighted image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.simclr.gradcache import cached_backward
from trainables.training.compile import compiled
from trainables.training.cuda_graphs import CapturedSteps
from trainables.training.loader import Loader
from trainables.training.sample_weights import SampleWeights, on_device


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
        self._warms_up = weights.device.type == "cuda"
        self._warm: set[tuple[int, bool]] = set()

    def compile(self) -> None:
        """Fuses the kernels of the network and, on a GPU, of the augmentation: once a batch size, when it is met."""
        self.forward, self._loader.augment.views = compiled(self._network), compiled(self._loader.augment.views)
        self._warms_up, self._warm = True, set()
        if self._captured is not None:
            self._captured = CapturedSteps(self._step, self._network)

    def prepare(self, groups: Iterable[range], batch_size: int) -> None:
        """Makes the first of these steps as fast as the next: compiles, captures, and lets libraries make their plans.

        Nothing is trained. On a CPU there is nothing to prepare, unless something was compiled. All workers call it
        together.

        Args:
            groups: Positions of each step's batches.
            batch_size: Of each.
        """
        if not self._warms_up:
            return
        share = self._loader.shares(batch_size)[self._loader.worker]
        for group in groups:
            several = len(group) > 1
            if self._captured is not None and not several and share <= self.micro_batch:
                repeats = self._loader.stream.may_repeat(group[0], batch_size)
                if self._captured.lacks(share, repeats):
                    self._captured.capture(*self._inputs(group[0], batch_size, repeats))
            elif (batch_size, several) not in self._warm:
                self._rehearse(group[:2], batch_size)
                self._warm.add((batch_size, several))
        if self._weights.device.type == "cuda":
            torch.cuda.synchronize(self._weights.device)

    def _inputs(self, position: int, batch_size: int, repeats: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of a captured step: images, what is drawn, and which images they are if one may come twice."""
        indices, draw = self._loader.ingredients(position, batch_size)
        rows = on_device(indices, self._weights.device) if repeats else None
        return self._loader.feed.batch(indices), draw.packed(), rows

    def _rehearse(self, positions: Sequence[int], batch_size: int) -> None:
        """A step whose gradients are thrown away, and that leaves no trace in statistics and random numbers."""
        device, buffers = self._weights.device, list(self._network.buffers())
        before = [buffer.clone() for buffer in buffers]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self.add(positions, batch_size, np.ones(len(positions)), 0.0)
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            torch._foreach_zero_([p.grad for p in self._network.parameters() if p.grad is not None])

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
        repeats = self._loader.stream.repeats(positions[0], len(positions) * batch_size)  # for all workers alike
        if self._captured is not None and len(positions) == 1:
            for told in (True,) if repeats else (False, True):
                if (own_share, told) in self._captured:
                    images, packed, rows = self._inputs(positions[0], batch_size, told)
                    return self._captured(images, packed, float(weights.sum()), rows)
        parts = -(-max(shares) // self.micro_batch)  # equally many on all workers
        views = [v for at in positions for v in self._loader.batch(at, batch_size, parts, since=positions[0])]
        indices = np.concatenate([self._loader.indices(at, batch_size) for at in positions])
        several = len(positions) > 1  # batches that count unequally in one loss
        own = on_device(np.repeat(weights, own_share), self._weights.device) if several else None
        rows = on_device(indices, self._weights.device) if repeats else None

        def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
            images = self._weights(z_a, z_b, indices, progress, shares, len(positions))
            if own is not None:
                images = own if images is None else images * own
            together = [len(positions) * share for share in shares]
            known = {} if rows is None else {"images": rows}
            return self.loss(z_a, z_b, weights=images, shares=together, **known) * float(weights.sum())

        if len(views) > 1:
            return cached_backward(self._network, views, loss, self._autocast)
        return self._backward(views[0](), loss)

    def _step(self, images: Tensor, packed: Tensor, weight: Tensor, rows: Tensor | None) -> Tensor:
        """The whole of one batch on the device, for a graph."""
        views = self._loader.augment.views(images.repeat(2, 1, 1, 1), packed)
        known = {} if rows is None else {"images": rows}
        return self._backward(views, lambda z_a, z_b: self.loss(z_a, z_b, shares=[len(images)], **known) * weight)

    def _backward(self, views: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with self._autocast:
            z_a, z_b = self.forward(views).chunk(2)
        value = loss(z_a, z_b)
        value.backward()
        return value.detach()
