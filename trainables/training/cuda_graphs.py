"""Replays training steps as CUDA graphs."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainables.simclr.batchnorm import buffers_restored

#: Steps before a capture, so that compilers, libraries and allocators are initialised.
_WARM_UPS = 3


Step = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class CudaGraphs:
    """Captures one CUDA graph per batch size, and another one for batches that hold an image twice.

    A graph is captured when its batch size is first used and is kept. Without graphs, the host of an H200 needed 29 ms
    for the 750 kernel launches of a small network's step, and the GPU was busy for 5 ms of them.

    Args:
        step: Maps images and ``Draw.packed`` on the device, a weight [] and the images' indices or None to a loss and
            adds its gradient to the model's. It must not synchronise with the device and must do the same every time.
        model: Model on a GPU whose gradients are computed. Its buffers are restored after a capture.
    """

    def __init__(self, step: Step, model: nn.Module) -> None:
        self._step, self._model = step, model
        self._graphs: dict[tuple[int, bool], _Graph] = {}
        # All graphs of a run share a pool, because one is replayed at a time. Runs must not share a stream: cuBLAS
        # frees the stream's workspace with the first of its graphs that is freed.
        self._stream, self._pool = torch.cuda.Stream(next(model.parameters()).device), torch.cuda.graph_pool_handle()
        self._possible = True

    def __call__(self, images: Tensor, packed: Tensor, weight: float, rows: Tensor | None = None) -> Tensor:
        """Replays the step with new inputs, without synchronisation."""
        graph = self._graphs[len(images), rows is not None]
        graph.images.copy_(images)
        graph.packed.copy_(packed.pin_memory(), non_blocking=True)
        graph.weight.fill_(weight)
        if graph.rows is not None and rows is not None:
            graph.rows.copy_(rows)
        graph.graph.replay()
        return graph.loss.clone()

    def __contains__(self, kind: tuple[int, bool]) -> bool:
        """Returns whether a graph for (number of images, whether one occurs twice) has been captured."""
        return kind in self._graphs

    def lacks(self, images: int, repeats: bool) -> bool:
        """Returns whether such a graph should be captured: it is missing, and memory has sufficed so far."""
        return self._possible and (images, repeats) not in self._graphs

    def capture(self, images: Tensor, packed: Tensor, rows: Tensor | None = None) -> None:
        """Captures a graph for batches of this kind. If memory is exhausted, all graphs are given up with a warning.

        Raises:
            RuntimeError: The step contains an operation that cannot be captured.
        """
        for p in self._model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)  # all graphs add to the same tensors
        with buffers_restored(self._model):
            try:
                with torch.cuda.device(images.device), _garbage_collection_off():
                    graph = _Graph(self._step, images, packed, rows, self._stream, self._pool)
                    self._graphs[len(images), rows is not None] = graph
            except RuntimeError as error:
                if "out of memory" not in str(error):
                    raise RuntimeError(
                        f"a step with {len(images)} images cannot be captured as a CUDA graph ({error}); "
                        "set accelerate: none"
                    ) from error
                self._graphs.clear()
                self._possible = False
                warnings.warn("training without CUDA graphs: GPU memory does not suffice for them", stacklevel=2)
        self._model.zero_grad(set_to_none=False)


class _Graph:
    def __init__(
        self, step: Step, images: Tensor, packed: Tensor, rows: Tensor | None, stream: torch.cuda.Stream, pool: Any
    ) -> None:
        self.images, self.packed = images.clone(), packed.to(images.device)
        self.rows = None if rows is None else rows.clone()
        self.weight = torch.ones((), device=images.device)
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    step(self.images, self.packed, self.weight, self.rows)
        finally:
            torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, such as NCCL's watchdog, may use CUDA during the capture.
        with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):
            self.loss = step(self.images, self.packed, self.weight, self.rows)


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Disables garbage collection: freeing another run's graph would invalidate the capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
