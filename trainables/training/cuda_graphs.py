"""Steps as CUDA graphs: the host launches one graph instead of several hundred operations."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Before a graph is captured: compilers, libraries' plans and allocators have made up their minds then.
_WARM_UPS = 3


Step = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class CapturedSteps:
    """One graph a batch size, captured when the size is first met: a swap back to a known size costs nothing. Batches
    that hold an image twice have another one.

    The 750 launches of a small network's step took the host of an H200 29 ms, and the GPU worked for 5 of them.

    Args:
        step: Images and ``Draw.packed`` on the device, a weight [], and which images these are or None -> a loss, whose
            gradient it adds to the model's. It must not read from the device, and do the same every time.
        model: Of the gradients, on a GPU; its buffers are put back after a capture.
    """

    def __init__(self, step: Step, model: nn.Module) -> None:
        self._step, self._model = step, model
        self._graphs: dict[tuple[int, bool], _Graph] = {}
        self._place = _Place(next(model.parameters()).device)
        self._possible = True

    def __call__(self, images: Tensor, packed: Tensor, weight: float, rows: Tensor | None = None) -> Tensor:
        """The step with these inputs, from anywhere; the host waits for none of them."""
        graph = self._graphs[len(images), rows is not None]
        graph.images.copy_(images)
        graph.packed.copy_(packed.pin_memory(), non_blocking=True)
        graph.weight.fill_(weight)
        if graph.rows is not None and rows is not None:
            graph.rows.copy_(rows)
        graph.graph.replay()
        return graph.loss.clone()

    def __contains__(self, kind: tuple[int, bool]) -> bool:
        """Whether there is a graph for batches of so many images, all different or not."""
        return kind in self._graphs

    def lacks(self, images: int, repeats: bool) -> bool:
        """Whether there is none yet, and could be."""
        return self._possible and (images, repeats) not in self._graphs

    def capture(self, images: Tensor, packed: Tensor, rows: Tensor | None = None) -> None:
        """Prepares for batches like this one. Where memory is too short, nothing is captured any more.

        Raises:
            RuntimeError: The step does what a graph cannot repeat.
        """
        for p in self._model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)  # graphs add to these tensors, wherever they are captured
        before = [buffer.clone() for buffer in self._model.buffers()]
        try:
            with torch.cuda.device(images.device), _nothing_collected():
                graph = _Graph(self._step, images, packed, rows, self._place)
                self._graphs[len(images), rows is not None] = graph
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise RuntimeError(
                    f"a step with {len(images)} images cannot be captured as a CUDA graph ({error}); "
                    "set accelerate: none"
                ) from error
            self._graphs.clear()
            self._possible = False
            warnings.warn("trains without CUDA graphs, which do not fit into memory beside the rest", stacklevel=2)
        with torch.no_grad():
            for buffer, value in zip(self._model.buffers(), before, strict=True):
                buffer.copy_(value)
            torch._foreach_zero_([p.grad for p in self._model.parameters() if p.grad is not None])


class _Place:
    """Where all graphs of a run are captured: one memory, as only one of them is replayed at a time, and one stream of
    the run's own, because cuBLAS frees a stream's workspace with the first of its graphs that is freed."""

    def __init__(self, device: torch.device) -> None:
        self.stream, self.memory = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()


class _Graph:
    def __init__(self, step: Step, images: Tensor, packed: Tensor, rows: Tensor | None, place: _Place) -> None:
        self.images, self.packed = images.clone(), packed.to(images.device)
        self.rows = None if rows is None else rows.clone()
        self.weight = torch.ones((), device=images.device)
        place.stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(place.stream):
                for _ in range(_WARM_UPS):
                    step(self.images, self.packed, self.weight, self.rows)
        finally:
            torch.cuda.current_stream().wait_stream(place.stream)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile, such as those that watch over communication.
        with torch.cuda.graph(self.graph, place.memory, place.stream, capture_error_mode="thread_local"):
            self.loss = step(self.images, self.packed, self.weight, self.rows)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Garbage may hold another run's graph, and to free one within a capture ends the capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
