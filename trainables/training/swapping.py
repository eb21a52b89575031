"""Swapping the loader inside a run: what a policy is told, and what it remembers."""

from __future__ import annotations

import json
from typing import Any

from schedulers import Candidate
from schedulers.in_run.policy import LoaderPolicy
from schedulers.in_run.rotate import Rotation
from schedulers.in_run.swap import SwapOnDeviation
from trainables.settings import SwapSettings


class Swapping:
    """A run's policy, with the history that brings it back from a checkpoint.

    Args:
        settings: Of the policy.
        first: What the run starts with.
        budget: The whole run, in samples.
        epoch: Training images.
    """

    def __init__(self, settings: SwapSettings, first: Candidate, *, budget: int, epoch: int) -> None:
        self._settings, self._budget, self._epoch = settings, budget, epoch
        self._candidates = [first, *(candidate for candidate in settings.candidates if candidate != first)]
        self.begin(0, 0.0)

    def begin(self, samples: int, seconds: float) -> None:
        """Knows nothing but that the run has come so far."""
        self._start = (samples, seconds)
        settings = self._settings
        common: dict[str, Any] = {
            "budget": self._budget,
            "start": self._start,
            "axis": settings.axis,
            "rates": settings.rates,
            "throughputs": settings.throughputs,
        }
        self._policy: LoaderPolicy
        if settings.mode == "rotate":
            turn = settings.turn or self._epoch
            self._policy = Rotation(self._candidates, turn=turn, exploration=settings.exploration, **common)
        else:
            self._policy = SwapOnDeviation(
                self._candidates, patience=settings.patience, threshold=settings.threshold, **common
            )

    @property
    def current(self) -> Candidate:
        """What to train with now."""
        return self._policy.current

    def report(self, samples: int, loss: float, seconds: float) -> dict[str, Any] | None:
        """Takes an evaluation. Returns the decision that it led to, if it did, as a JSON-like mapping."""
        decision = self._policy.report(samples, loss, seconds)
        return decision.as_dict() if decision is not None else None

    def state(self) -> str:
        """Everything that ``restore`` needs, as JSON."""
        settings = self._settings.model_dump(mode="json")
        return json.dumps({"settings": settings, "start": self._start, "policy": self._policy.state()})

    def restore(self, state: str) -> None:
        """Takes up the history of ``state()``: the same reports lead to the same decisions.

        They are taken with the settings of then: what a race knew of rates is not what it would say of them now.
        """
        history = json.loads(state)
        self._settings = SwapSettings.model_validate(history["settings"])
        self.begin(*history["start"])
        self._policy.restore(history["policy"])
