"""Measures the phases of a training step, on a CPU and in CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PHASES = ("data", "augment", "forward", "loss", "backward", "update")
Split = dict[str, float]


class Stopwatch:
    """Adds up the seconds of functions by phase.

    On a GPU, CUDA events measure them without synchronisation. Events that were captured in a CUDA graph are recorded
    in every replay and measure the last one.
    """

    def __init__(self, device: Any) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self._captured: list[tuple[str, Any, Any]] = []

    def __call__(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            result = function(*args, **kwargs)
            self._add(phase, start, self._now())
            return result

        return timed

    def reset(self) -> None:
        """Discards the measurements, except captured events."""
        self._spans = []

    def seconds(self, steps: int) -> Split:
        """Returns the seconds per phase of one of the ``steps`` since the last reset."""
        total = dict.fromkeys(PHASES, 0.0)
        for share, spans in ((1 / steps, self._spans), (1, self._captured)):
            for phase, start, stop in spans:
                total[phase] += share * (start.elapsed_time(stop) / 1e3 if self._on_gpu else stop - start)
        return total

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True, external=torch.cuda.is_current_stream_capturing())
        event.record()
        return event

    def _add(self, *span: Any) -> None:
        import torch

        captured = self._on_gpu and torch.cuda.is_current_stream_capturing()
        (self._captured if captured else self._spans).append(span)
