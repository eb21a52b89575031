"""A policy without a race: candidates take turns within one run, chosen by upper confidence bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from schedulers.candidate import Candidate
from schedulers.in_run.policy import LoaderPolicy, SwapDecision


class Rotation(LoaderPolicy):
    """Gives every candidate ``rounds`` turns, then each turn to the one with the highest upper confidence bound.

    The joint fit of the run estimates the log efficiency of every candidate. The bound is the log efficiency (with
    ``axis="seconds"`` the log goodput) plus ``exploration`` standard deviations.

    Args:
        candidates, budget, start, axis, rates, throughputs: See ``LoaderPolicy``.
        turn: Samples of a turn, which ends with the first report at or after them.
        rounds: Turns of every candidate before the bounds decide.
        exploration: Standard deviations added to the mean; 0 never explores.

    Raises:
        ValueError: See ``LoaderPolicy``; or ``turn``, ``rounds`` or ``exploration`` is out of range.
    """

    def __init__(
        self, candidates: Sequence[Candidate], *, turn: float, rounds: int = 2, exploration: float = 1.0, **common: Any
    ) -> None:
        super().__init__(candidates, **common)
        if not (turn > 0 and math.isfinite(turn)):
            raise ValueError(f"turn {turn} is not a positive number of samples")
        if rounds < 1:
            raise ValueError(f"rounds {rounds} is below 1")
        if not exploration >= 0:
            raise ValueError(f"exploration {exploration} is negative")
        self._turn, self._rounds, self._exploration = turn, rounds, exploration
        self._turn_started = self._start[0]
        self._turns = 0

    def _decide(self) -> SwapDecision | None:
        samples, _, loss = self._reports[-1]
        if samples - self._turn_started < self._turn:
            return None
        forecast = self._forecast(self.current.key, samples) if self._turns else None
        deviation = (forecast.mean - loss) / forecast.std if forecast is not None and forecast.std > 0 else math.nan
        self._turns, self._turn_started = self._turns + 1, samples
        self._refit(self._later_half())
        self._remember()
        chosen, reason = self._next()
        return self._choose(chosen, "keep" if chosen == self._now else "swap", reason, forecast, deviation)

    def _next(self) -> tuple[int, str]:
        count = len(self.candidates)
        if self._turns < self._rounds * count:
            return self._turns % count, f"turn {self._turns + 1} of the first {self._rounds * count}"
        bounds = [mean + self._exploration * std for mean, std in (self._worth(c.key) for c in self.candidates)]
        best = bounds.index(max(bounds))
        mean, std = self._worth(self.candidates[best].key)
        measure = "efficiency" if self._axis == "samples" else "goodput"
        return best, f"highest upper bound: log {measure} {mean:+.2f}, standard deviation {std:.2f}"
