"""What every way to change the loader inside a run has in common: the run's history and its shared-curve fit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from schedulers.candidate import Candidate
from schedulers.forecast import Forecast, JointForecaster

#: A fit needs so many reports, however short the later half of the run is.
_MIN_REPORTS = 8
#: How far a log rate wanders: standard deviation per unit of sqrt(ln(samples now / when it was measured)).
_WANDER = 0.3


@dataclass(frozen=True)
class SwapDecision:
    """A decision about the loader, with the numbers it was taken on.

    Args:
        samples: Samples seen.
        candidate: Key of the candidate that was trained with until now.
        chosen: Key of the one to train with from now on.
        action: ``keep``, ``swap`` (try another), ``confirm`` (it stays) or ``return`` (it does not).
        reason: Why, in words.
        forecast: What the loss was expected to be here when the last decision was taken; None before the first.
        actual: The loss.
        deviation: (forecast - actual) / standard deviation, mean since the last decision; nan before the first.
        rates: The candidates' log progress rates and standard deviations.
    """

    samples: float
    candidate: str
    chosen: str
    action: str
    reason: str
    forecast: Forecast | None
    actual: float
    deviation: float
    rates: Mapping[str, tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-like: numbers that are not finite become None."""
        forecast = self.forecast or Forecast(math.nan, math.nan)
        return {
            "samples": self.samples,
            "candidate": self.candidate,
            "chosen": self.chosen,
            "action": self.action,
            "reason": self.reason,
            "forecast": _finite(forecast.mean),
            "forecast_std": _finite(forecast.std),
            "actual": _finite(self.actual),
            "deviation": _finite(self.deviation),
            "rates": {key: [_finite(mean), _finite(std)] for key, (mean, std) in self.rates.items()},
        }


class LoaderPolicy(ABC):
    """Decides after every report which candidate's loader a run goes on with. Pure: the reports decide, nothing else.

    Args:
        candidates: At least one, all different; the run starts with the first.
        budget: Samples of the whole run.
        start: Samples and seconds at which this history begins (the race's end, say).
        axis: What is scarce: with ``seconds`` rates count times throughput.
        rates: What a race has found: each key's log progress rate and its standard deviation.
        throughputs: Samples per second by key, until they are measured here.

    Raises:
        ValueError: There is no candidate, one appears twice, or the axis is unknown.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        budget: float,
        start: tuple[float, float] = (0.0, 0.0),
        axis: str = "samples",
        rates: Mapping[str, tuple[float, float]] | None = None,
        throughputs: Mapping[str, float] | None = None,
    ) -> None:
        if not candidates:
            raise ValueError("name at least one candidate to train with")
        if len(set(candidates)) < len(candidates):
            raise ValueError(f"a candidate appears twice in {', '.join(c.key for c in candidates)}")
        if axis not in ("samples", "seconds"):
            raise ValueError(f"axis {axis!r} is unknown: use 'samples' or 'seconds'")
        self.candidates = tuple(candidates)
        self._budget, self._start, self._axis = budget, start, axis
        self._throughputs = dict(throughputs or {})
        self._known = {key: (*rate, start[0]) for key, rate in (rates or {}).items()}
        self._forecaster, self._fit_from = JointForecaster(), start[0]
        self._reports: list[tuple[float, float, float]] = []
        self._exposure: list[list[float]] = []  # of each report: samples under each candidate
        self._spent = {candidate.key: [0.0, 0.0] for candidate in candidates}  # samples, seconds
        self._now = 0

    @property
    def current(self) -> Candidate:
        """What to train with now."""
        return self.candidates[self._now]

    def report(self, samples: float, loss: float, seconds: float) -> SwapDecision | None:
        """Takes the loss after ``samples`` samples and ``seconds`` of the run; may change ``current``.

        Returns:
            The decision, when this report led to one.
        """
        samples_before, seconds_before = self._reports[-1][:2] if self._reports else self._start
        exposure = list(self._exposure[-1]) if self._exposure else [0.0] * len(self.candidates)
        exposure[self._now] += samples - samples_before
        spent = self._spent[self.current.key]
        spent[0], spent[1] = spent[0] + samples - samples_before, spent[1] + seconds - seconds_before
        self._reports.append((samples, seconds, loss))
        self._exposure.append(exposure)
        return self._decide()

    def state(self) -> dict[str, Any]:
        """The history, as lists of numbers."""
        return {"reports": [list(report) for report in self._reports]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up the history of ``state()``: the same reports lead to the same decisions."""
        for samples, seconds, loss in state["reports"]:
            self.report(samples, loss, seconds)

    @abstractmethod
    def _decide(self) -> SwapDecision | None:
        """What follows from the last report."""

    def _refit(self, since: float, *, afresh: bool = False) -> None:
        """Fits the reports after ``since`` samples.

        What lies further back is forgotten but for the rates, which grow uncertain: gradient noise rises as training
        goes on, and a rate is not the rate for ever. ``afresh`` forgets these, too.
        """
        now = self._reports[-1][0]
        first = sum(samples <= since for samples, _, _ in self._reports)
        base = np.array(self._exposure[first - 1]) if first else np.zeros(len(self.candidates))
        self._fit_from = self._start[0] + float(base.sum())
        prior = {
            key: (mean, math.hypot(std, _WANDER * math.sqrt(math.log(max(now / max(then, 1.0), 1.0)))))
            for key, (mean, std, then) in ({} if afresh else self._known).items()
        }
        self._forecaster = JointForecaster(head_start=self._fit_from, rates=prior)
        exposure = np.array(self._exposure[first:]) - base
        keys = [candidate.key for candidate in self.candidates]
        losses = np.array([loss for _, _, loss in self._reports[first:]])
        self._forecaster.fit_run(keys, exposure, losses, end=self._budget)

    def _later_half(self) -> float:
        """Samples after which a fit looks at the run, unless there is a reason to look less far back."""
        return min(self._reports[-1][0] / 2, self._earliest_of_last(_MIN_REPORTS))

    def _earliest_of_last(self, count: int) -> float:
        """Samples just before the last ``count`` reports."""
        return self._reports[-count - 1][0] if len(self._reports) > count else self._start[0]

    def _remember(self) -> None:
        """Keeps the current candidate's rate for the time when its reports are forgotten."""
        rate = self._forecaster.rates().get(self.current.key)
        if rate is not None:
            self._known[self.current.key] = (*rate, self._reports[-1][0])

    def _forecast(self, key: str, samples: float) -> Forecast:
        """The loss once the run has seen ``samples`` samples, if it goes on under ``key`` from the last fit's end."""
        return self._forecaster.forecast(key, samples - self._fit_from)

    def _worth(self, key: str) -> tuple[float, float]:
        """Logarithm of the progress that a unit of what is scarce brings under a candidate, and its deviation.

        A candidate of unknown throughput is taken to be as fast as the current one.
        """
        rate, std = self._forecaster.rates().get(key, (0.0, 1.0))
        if self._axis == "seconds":
            rate += math.log(self._throughput(key) or self._throughput(self.current.key) or 1.0)
        return rate, std

    def _throughput(self, key: str) -> float | None:
        samples, seconds = self._spent[key]
        return samples / seconds if samples > 0 and seconds > 0 else self._throughputs.get(key)

    def _choose(
        self, chosen: int, action: str, reason: str, forecast: Forecast | None, deviation: float
    ) -> SwapDecision:
        """Switches to candidate ``chosen``, and says so."""
        samples, _, loss = self._reports[-1]
        before, self._now = self.current.key, chosen
        rates = {str(key): rate for key, rate in self._forecaster.rates().items()}
        return SwapDecision(samples, before, self.current.key, action, reason, forecast, loss, deviation, rates)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
