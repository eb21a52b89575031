"""A policy that swaps the batch size when the run underperforms its forecast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from schedulers.candidate import Candidate
from schedulers.forecast import Forecast
from schedulers.forecast.deviation import PATIENCE, THRESHOLD, Deviation
from schedulers.forecast.schedule_clock import annealed
from schedulers.in_run.policy import LoaderPolicy, SwapDecision

#: A candidate is tried only if this many times ``patience`` reports at the full learning rate are left. Once the
#: learning rate has decayed, losses hardly change and noise would decide.
_REPORTS_LEFT = 2


class SwapOnDeviation(LoaderPolicy):
    """Tries another candidate when the current one underperforms.

    Every decision makes a forecast, which is compared with the next ``patience`` losses. Unless they underperform, the
    candidate is kept and the forecast renewed. If they do, the best of the other candidates is tried for ``patience``
    reports. It is kept if it is more efficient than the previous one; both efficiencies come from one fit of the
    underperforming and the new reports. Else the run returns to the previous candidate, and the rejected one is not
    tried again before all others have been.

    Args:
        candidates, budget, start, axis, rates, throughputs: See ``LoaderPolicy``.
        patience: Number of reports per decision, at least 2.
        threshold: Standard deviations above the forecast at which a loss underperforms.

    Raises:
        ValueError: See ``LoaderPolicy`` and ``Deviation``; or ``patience`` is below 2.
    """

    def __init__(
        self, candidates: Sequence[Candidate], *, patience: int = PATIENCE, threshold: float = THRESHOLD, **common: Any
    ) -> None:
        super().__init__(candidates, **common)
        if patience < 2:
            raise ValueError(f"patience {patience} is below 2: one report has no trend")
        self._deviation = Deviation(patience, threshold)
        self._before: int | None = None  # the previous candidate, while another one is being tried
        self._holds_from = self._start[0]  # samples after which the current curve holds
        self._tried: set[int] = set()

    def _decide(self) -> SwapDecision | None:
        samples, _, loss = self._reports[-1]
        forecast = self._deviation.forecast_at(samples)
        if forecast is None:  # no forecast yet
            if len(self._reports) < max(self._deviation.patience, 3):
                return None
            return self._take("keep", self._now, "first forecast", None)
        self._deviation.report(samples, loss)
        if not self._deviation.settled:
            return None
        if self._before is not None:
            return self._judge(self._before, forecast)
        result = f"forecast deviation {self._deviation.mean:+.1f} standard deviations"
        if not self._deviation.underperformed:
            if self._deviation.mean < -self._deviation.threshold / 2:
                return None  # unclear: a renewed forecast would adapt to the worse losses
            return self._take("keep", self._now, result, forecast)
        result += f", {self._deviation.patience} reports in a row"
        other = self._next_best()
        if other is None or not self._time_is_left():
            why = "there is no other candidate" if other is None else "too little of the budget is left to try another"
            return self._take("keep", self._now, f"{result}, but {why}", forecast)
        self._holds_from = self._earliest_of_last(self._deviation.patience + 1)
        self._before = self._now
        return self._take("swap", other, result, forecast)

    def _judge(self, before: int, forecast: Forecast) -> SwapDecision:
        """Decides whether the candidate that was tried is kept."""
        self._before = None
        self._refit(self._holds_from, forget=True)
        old, new = self.candidates[before].key, self.current.key
        gain = self._worth(new)[0] - self._worth(old)[0]
        measure = "statistical efficiency" if self._axis == "samples" else "goodput"
        reason = f"{measure} is {math.exp(gain):.2f} times that of {old}"
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
        return left >= _REPORTS_LEFT * self._deviation.patience * spacing

    def _take(self, action: str, chosen: int, reason: str, forecast: Forecast | None) -> SwapDecision:
        self._refit(max(self._holds_from, self._later_half()))
        self._remember()
        key = self.current.key if action == "swap" else self.candidates[chosen].key  # a swap must beat it
        decision = self._choose(chosen, action, reason, forecast, self._deviation.mean)
        forecaster, fit_from = self._forecaster, self._fit_from
        self._deviation.expect(lambda at: forecaster.forecast(key, at - fit_from))
        return decision
