"""Method 3 on one worker group: candidates take turns inside one run, and the best rate gets the next turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from schedulers.candidate import Candidate
from schedulers.in_run.policy import LoaderPolicy, SwapDecision


class Rotation(LoaderPolicy):
    """Gives every candidate ``rounds`` turns, then each turn to the one whose rate may be the best.

    Progress advances by ``r_j`` times the samples under candidate ``j``, along one shared curve, so the joint fit of
    the one run gives every candidate's rate. The choice is by upper confidence bound: log rate (with
    ``axis="seconds"``: of goodput) plus ``exploration`` standard deviations.

    Args:
        candidates, budget, start, axis, rates, throughputs: See ``LoaderPolicy``.
        turn: Samples of a turn; it ends with the first report at or after them.
        rounds: Turns of every candidate before the rates decide.
        exploration: Standard deviations of a log rate that speak for a candidate.

    Raises:
        ValueError: See ``LoaderPolicy``; or ``turn``, ``rounds`` or ``exploration`` is out of its range.
    """

    def __init__(
        self, candidates: Sequence[Candidate], *, turn: float, rounds: int = 2, exploration: float = 1.0, **common: Any
    ) -> None:
        super().__init__(candidates, **common)
        if not (turn > 0 and math.isfinite(turn)):
            raise ValueError(f"a turn of {turn} samples is none: give a positive number")
        if rounds < 1:
            raise ValueError(f"rounds {rounds} is below 1")
        if not exploration >= 0:
            raise ValueError(f"exploration {exploration} is negative")
        self._turn, self._rounds, self._exploration = turn, rounds, exploration
        self._turn_began = self._start[0]
        self._turns = 0

    def _decide(self) -> SwapDecision | None:
        samples, _, loss = self._reports[-1]
        if samples - self._turn_began < self._turn:
            return None
        forecast = self._forecast(self.current.key, samples) if self._turns else None
        deviation = (forecast.mean - loss) / forecast.std if forecast is not None and forecast.std > 0 else math.nan
        self._turns, self._turn_began = self._turns + 1, samples
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
        return best, f"the best log rate may be its own: {mean:+.2f} with a standard deviation of {std:.2f}"
