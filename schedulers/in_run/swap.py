"""The (+)/(-) rule: keep the loader while the loss is what was forecast, try another when it persistently is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from schedulers.candidate import Candidate
from schedulers.forecast import Forecast
from schedulers.forecast.deviation import PATIENCE, THRESHOLD, Deviation
from schedulers.forecast.schedule_clock import annealed
from schedulers.in_run.policy import LoaderPolicy, SwapDecision

#: A candidate must have so many times ``patience`` reports at full pace ahead of it, or trying it is not worth the
#: trouble: while the learning rate ends nothing moves much, and noise decides.
_WORTH_TRYING = 2


class SwapOnDeviation(LoaderPolicy):
    """Swaps when the current loader underperforms.

    Every decision leaves a forecast behind. After ``patience`` reports: (+) or as forecast, the loader is kept and a
    new forecast made. All of them (-): the curve before no longer holds, and the candidate with the best expected
    decrease among the others is tried for ``patience`` reports. It stays if it then does better than the loader that
    underperformed: both rates come from one fit of the underperforming and the new reports. Else the run goes back, and
    that candidate is not tried again before underperformances have led to every other one.

    Args:
        candidates, budget, start, axis, rates, throughputs: See ``LoaderPolicy``.
        patience: Reports that a decision is given, at least 2.
        threshold: How far above its forecast a loss must lie to underperform, in standard deviations.

    Raises:
        ValueError: See ``LoaderPolicy`` and ``Deviation``; or ``patience`` is below 2.
    """

    def __init__(
        self, candidates: Sequence[Candidate], *, patience: int = PATIENCE, threshold: float = THRESHOLD, **common: Any
    ) -> None:
        super().__init__(candidates, **common)
        if patience < 2:
            raise ValueError(f"patience {patience} is below 2: one report shows no direction")
        self._deviation = Deviation(patience, threshold)
        self._before: int | None = None  # while another candidate is being tried: what to go back to
        self._holds_from = self._start[0]  # samples after which the curve is what it was forecast to be
        self._tried: set[int] = set()

    def _decide(self) -> SwapDecision | None:
        samples, _, loss = self._reports[-1]
        forecast = self._deviation.forecast_at(samples)
        if forecast is None:  # nothing is known yet
            if len(self._reports) < max(self._deviation.patience, 3):
                return None
            return self._take("keep", self._now, "first forecast", None)
        self._deviation.report(samples, loss)
        if not self._deviation.settled:
            return None
        if self._before is not None:
            return self._judge(self._before, forecast)
        told = f"{self._deviation.mean:+.1f} standard deviations"
        if not self._deviation.underperformed:
            if self._deviation.mean < -self._deviation.threshold / 2:
                return None  # doubtful: a forecast that is renewed now would learn to expect less
            return self._take("keep", self._now, told, forecast)
        told += f", {self._deviation.patience} reports in a row"
        other = self._next_best()
        if other is None or not self._time_is_left():
            why = "there is nothing else to try" if other is None else "the end is too close to try another"
            return self._take("keep", self._now, f"{told}, but {why}", forecast)
        self._holds_from = self._earliest_of_last(self._deviation.patience + 1)
        self._before = self._now
        return self._take("swap", other, told, forecast)

    def _judge(self, before: int, forecast: Forecast) -> SwapDecision:
        """Whether the candidate that is being tried stays."""
        self._before = None
        self._refit(self._holds_from, afresh=True)
        old, new = self.candidates[before].key, self.current.key
        gain = self._worth(new)[0] - self._worth(old)[0]
        unit = "sample" if self._axis == "samples" else "second"
        reason = f"a {unit} is worth {math.exp(gain):.2f} times what it was with {old}"
        if gain > 0:
            self._tried = set()
            return self._take("confirm", self._now, reason, forecast)
        self._tried.add(self._now)
        return self._take("return", before, reason, forecast)

    def _next_best(self) -> int | None:
        others = set(range(len(self.candidates))) - {self._now}
        if not others - self._tried:
            self._tried = set()
        return max(others - self._tried, key=lambda j: (self._worth(self.candidates[j].key)[0], -j), default=None)

    def _time_is_left(self) -> bool:
        samples = self._reports[-1][0]
        spacing = (samples - self._start[0]) / len(self._reports)
        left = float(annealed(self._budget, self._budget) - annealed(samples, self._budget))
        return left >= _WORTH_TRYING * self._deviation.patience * spacing

    def _take(self, action: str, chosen: int, reason: str, forecast: Forecast | None) -> SwapDecision:
        self._refit(max(self._holds_from, self._later_half()))
        self._remember()
        key = self.current.key if action == "swap" else self.candidates[chosen].key  # a swap must beat what was
        decision = self._choose(chosen, action, reason, forecast, self._deviation.mean)
        forecaster, fit_from = self._forecaster, self._fit_from
        self._deviation.expect(lambda at: forecaster.forecast(key, at - fit_from))
        return decision
