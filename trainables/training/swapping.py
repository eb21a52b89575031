"""Swaps a run's candidate while it trains, as a policy decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from schedulers import Candidate
from schedulers.in_run.policy import LoaderPolicy
from schedulers.in_run.rotate import Rotation
from schedulers.in_run.swap import SwapOnDeviation
from trainables.settings import SwapSettings


class Swapping:
    """Holds a run's policy and saves it with checkpoints.

    The run starts with ``first``. ``budget`` is in samples; ``epoch`` is the number of training images.
    """

    def __init__(self, settings: SwapSettings, first: Candidate, *, budget: int, epoch: int) -> None:
        self._settings, self._budget, self._epoch = settings, budget, epoch
        self._candidates = [first, *(candidate for candidate in settings.candidates if candidate != first)]
        self.begin(0, 0.0)

    def begin(self, samples: int, seconds: float) -> None:
        """Starts the policy without history at a position of the run."""
        self._start = (samples, seconds)
        settings = self._settings
        kind: Callable[..., LoaderPolicy] = partial(
            SwapOnDeviation, patience=settings.patience, threshold=settings.threshold
        )
        if settings.mode == "rotate":
            kind = partial(Rotation, turn=settings.turn or self._epoch)
        self._policy = kind(
            self._candidates,
            budget=self._budget,
            start=self._start,
            axis=settings.axis,
            rates=settings.rates,
            throughputs=settings.throughputs,
        )

    @property
    def current(self) -> Candidate:
        """The candidate to train with."""
        return self._policy.current

    def report(self, samples: int, loss: float, seconds: float) -> dict[str, Any] | None:
        """Passes an evaluation to the policy. Returns its decision as a JSON-like mapping, or None."""
        decision = self._policy.report(samples, loss, seconds)
        return decision.as_dict() if decision is not None else None

    def state(self) -> str:
        """Returns the policy's state as JSON."""
        settings = self._settings.model_dump(mode="json")
        return json.dumps({"settings": settings, "start": self._start, "policy": self._policy.state()})

    def restore(self, state: str) -> None:
        """Restores what ``state`` returned, including the settings. The same reports lead to the same decisions."""
        history = json.loads(state)
        self._settings = SwapSettings.model_validate(history["settings"])
        self.begin(*history["start"])
        self._policy.restore(history["policy"])
