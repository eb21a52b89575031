"""Computes the gradient of the contrastive loss, in micro-batches if a batch does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.simclr.batchnorm import buffers_restored
from trainables.simclr.gradcache import cached_backward
from trainables.training.compile import Compiled
from trainables.training.cuda_graphs import CudaGraphs
from trainables.training.loader import Batch, Loader
from trainables.training.sample_weights import SampleWeights, on_device


class ContrastiveGradients:
    """Adds gradients of the contrastive loss to a network's.

    Args:
        network: Maps views to projections; wrapped in ``DistributedDataParallel`` with several workers.
        loss: See ``ContrastiveLoss``; its temperature is set.
        micro_batch: Images of one worker in the network at once.
        capture: Whether to replay whole batches as CUDA graphs. Needs a single worker, a loss that does not
            synchronise with the device, and no sample weights.
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
        # For whole shards. Micro-batches are not compiled: their sizes vary too much.
        self.forward: Callable[[Tensor], Tensor] = network
        self._graphs = CudaGraphs(self._step, network) if capture else None
        self._warms_up = loader.device.type == "cuda"
        self._warm: set[tuple[int, bool]] = set()

    def compile(self) -> None:
        """Compiles the network and, on a GPU, the augmentation for each batch size when it is first used.

        All workers must call it before the same step, so that they compile at the same time: a worker that compiles
        reaches the collectives of batch norm later.
        """
        network, augment = self._network, self._loader.augment
        if isinstance(network, DistributedDataParallel):
            network.module.compiled = Compiled(network.module.model)
            self.forward = partial(network, fast=True)
        else:
            self.forward = Compiled(network)
        augment.views = Compiled(augment.views)
        self._warms_up, self._warm = True, set()
        if self._graphs is not None:
            self._graphs = CudaGraphs(self._step, self._network)

    @contextmanager
    def without_graphs(self) -> Iterator[None]:
        """Uses no CUDA graphs in a block. Those that have been captured are kept."""
        graphs, self._graphs = self._graphs, None
        try:
            yield
        finally:
            self._graphs = graphs

    def prepare(self, groups: Iterable[range], batch_size: int) -> None:
        """Compiles and captures what the coming steps need, so that the first one takes as long as the next.

        Nothing is trained. On a CPU there is nothing to prepare unless something was compiled. All workers must call it
        together, with the positions of each step's batches of ``batch_size`` images over all workers.
        """
        if not self._warms_up:
            return
        loader = self._loader
        shard_size = loader.shard_sizes(batch_size)[loader.rank]
        for group in groups:
            several = len(group) > 1
            if self._graphs is not None and not several and shard_size <= self.micro_batch:
                repeats = loader.stream.may_repeat(group[0], batch_size)
                if self._graphs.lacks(shard_size, repeats):
                    self._graphs.capture(*self._graph_inputs(loader.batch(group[0], batch_size), repeats))
            elif (batch_size, several) not in self._warm:
                self._rehearse(group[:2], batch_size)
                self._warm.add((batch_size, several))
        if loader.device.type == "cuda":
            torch.cuda.synchronize(loader.device)

    def _graph_inputs(self, batch: Batch, repeats: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns images, augmentation parameters and, if an image may occur twice, indices, for a CUDA graph."""
        rows = on_device(batch.indices, self._loader.device) if repeats else None
        return batch.images(), batch.draw.packed(), rows

    def _rehearse(self, positions: Sequence[int], batch_size: int) -> None:
        """Computes gradients and discards them; buffers and random number generators are restored."""
        devices = [self._loader.device] if self._loader.device.type == "cuda" else []
        with buffers_restored(self._network), torch.random.fork_rng(devices=devices):
            self._compile_together(positions, batch_size)
            self.add(positions, batch_size, np.ones(len(positions)), 0.0)
        self._network.zero_grad(set_to_none=False)  # graphs add to these tensors

    def _compile_together(self, positions: Sequence[int], batch_size: int) -> None:
        """Compiles the network inside ``DistributedDataParallel``; if a worker cannot, all use eager mode.

        Batch norm and DDP share a process group. In eager mode, DDP reduces its first buckets between the collectives
        of batch norm, and after a compiled backward pass behind them: the workers must not mix.
        """
        whole = max(self._loader.shard_sizes(batch_size)) <= self.micro_batch
        compiles = isinstance(self._network, DistributedDataParallel) and self.forward is not self._network
        if not compiles or len(positions) > 1 or not whole:
            return
        replica: Any = self._network.module
        with self._autocast:
            # Not with DDP, which expects a backward pass. The forward passes of workers may be mixed.
            replica(self._loader.batch(positions[0], batch_size).views(), fast=True)
        failed = torch.tensor(int(replica.compiled.failed), device=self._loader.device)
        dist.all_reduce(failed, dist.ReduceOp.MAX)
        if failed.item():
            self.forward = self._network

    def add(self, positions: Sequence[int], batch_size: int, weights: NDArray[np.float64], progress: float) -> Tensor:
        """Adds the gradient of the weighted sum of the batches' losses, with all of them as each other's negatives.

        Args:
            positions: Positions of the batches in the stream, in samples, ascending.
            batch_size: Images of each batch over all workers.
            weights: Weight of each batch.
            progress: Fraction of the run's budget that has been used.

        Returns:
            The weighted sum of the losses [], on the device.
        """
        loader = self._loader
        repeats = loader.stream.repeats(positions[0], len(positions) * batch_size)  # on all workers alike
        batches = [loader.batch(position, batch_size, since=positions[0]) for position in positions]
        if self._graphs is not None and len(batches) == 1:
            for with_rows in (True,) if repeats else (False, True):
                if (len(batches[0].indices), with_rows) in self._graphs:
                    images, packed, rows = self._graph_inputs(batches[0], with_rows)
                    return self._graphs(images, packed, float(weights.sum()), rows)
        shards = loader.shard_sizes(batch_size)
        parts = -(-max(shards) // self.micro_batch)  # the same number on all workers
        views = [part.views for batch in batches for part in batch.split(parts)]
        indices = np.concatenate([batch.indices for batch in batches])
        several = len(batches) > 1  # batches with different weights in one loss
        by_batch = on_device(np.repeat(weights, shards[loader.rank]), loader.device) if several else None
        rows = on_device(indices, loader.device) if repeats else None

        def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
            images = self._weights(z_a, z_b, indices, progress, shards, len(batches))
            if by_batch is not None:
                images = by_batch if images is None else images * by_batch
            sizes = [len(batches) * size for size in shards]
            known = {} if rows is None else {"images": rows}
            return self.loss(z_a, z_b, weights=images, shard_sizes=sizes, **known) * float(weights.sum())

        if len(views) > 1:
            return cached_backward(self._network, views, loss, self._autocast)
        return self._backward(views[0](), loss)

    def _step(self, images: Tensor, packed: Tensor, weight: Tensor, rows: Tensor | None) -> Tensor:
        """Computes the gradient of one whole batch on the device; captured as a CUDA graph."""
        views = self._loader.augment.views(images.repeat(2, 1, 1, 1), packed)
        known = {} if rows is None else {"images": rows}
        return self._backward(views, lambda z_a, z_b: self.loss(z_a, z_b, shard_sizes=[len(images)], **known) * weight)

    def _backward(self, views: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with self._autocast:
            z_a, z_b = self.forward(views).chunk(2)
        value = loss(z_a, z_b)
        value.backward()
        return value.detach()
