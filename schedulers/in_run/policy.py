"""The base of policies that change the batch size within a run: the history of losses and its joint fit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from schedulers.candidate import Candidate
from schedulers.forecast import Forecast, JointForecaster

#: Minimum number of reports in a fit.
_MIN_REPORTS = 8
#: Drift of a log efficiency: standard deviation per unit of sqrt(ln(samples now / when it was measured)).
_DRIFT = 0.3


@dataclass(frozen=True)
class SwapDecision:
    """A decision on the candidate to train with, and the numbers that it is based on."""

    samples: float  # seen so far
    candidate: str  # key of the previous candidate
    chosen: str  # key of the next candidate
    action: str  # keep, swap (try another), confirm (keep it after the trial) or return (go back)
    reason: str  # for users
    forecast: Forecast | None  # the loss that was forecast for this point at the last decision; None at the first
    actual: float  # the loss
    deviation: float  # (forecast - actual) / standard deviation, mean since the last decision; nan at the first
    rates: Mapping[str, tuple[float, float]]  # the candidates' log efficiencies and standard deviations

    def as_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON, with None for numbers that are not finite."""
        forecast = self.forecast or Forecast(math.nan, math.nan)
        return {
            **vars(self),
            "forecast": _finite(forecast.mean),
            "forecast_std": _finite(forecast.std),
            "actual": _finite(self.actual),
            "deviation": _finite(self.deviation),
            "rates": {key: [*map(_finite, rate)] for key, rate in self.rates.items()},
        }


class LoaderPolicy(ABC):
    """Decides after every report which candidate a run continues with. Decisions depend only on the reports.

    Args:
        candidates: At least one, all different; the run starts with the first.
        budget: Samples of the whole run.
        start: Samples and seconds at which the history starts, such as the end of a race.
        axis: ``samples``, or ``seconds`` to compare candidates by goodput (efficiency times throughput).
        rates: Log efficiency and standard deviation of each key, from a race.
        throughputs: Samples per second by key, measured alone. Those of other candidates are taken from this run, so
            that decisions by goodput depend on its seconds.

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
            raise ValueError("give at least one candidate to train with")
        if len(set(candidates)) < len(candidates):
            raise ValueError(f"a candidate appears twice in {', '.join(map(str, candidates))}")
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
        """The candidate to train with."""
        return self.candidates[self._now]

    def report(self, samples: float, loss: float, seconds: float) -> SwapDecision | None:
        """Adds the loss after ``samples`` samples and ``seconds`` of the run.

        Returns:
            The decision, if this report leads to one. It may change ``current``.
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
        """Returns the history as lists of numbers."""
        return {"reports": [list(report) for report in self._reports]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the result of ``state()`` by repeating its reports."""
        for samples, seconds, loss in state["reports"]:
            self.report(samples, loss, seconds)

    @abstractmethod
    def _decide(self) -> SwapDecision | None:
        """Returns the decision that follows from the last report."""

    def _refit(self, since: float, *, forget: bool = False) -> None:
        """Fits the reports after ``since`` samples.

        Earlier reports only contribute priors of the efficiencies. Their standard deviation grows with the distance,
        because gradient noise increases during training. With ``forget`` there are no such priors.
        """
        now = self._reports[-1][0]
        first = sum(samples <= since for samples, _, _ in self._reports)
        base = np.array(self._exposure[first - 1]) if first else np.zeros(len(self.candidates))
        self._fit_from = self._start[0] + float(base.sum())
        prior = {
            key: (mean, math.hypot(std, _DRIFT * math.sqrt(math.log(max(now / max(then, 1.0), 1.0)))))
            for key, (mean, std, then) in ({} if forget else self._known).items()
        }
        self._forecaster = JointForecaster(head_start=self._fit_from, rates=prior)
        exposure = np.array(self._exposure[first:]) - base
        keys = [candidate.key for candidate in self.candidates]
        losses = np.array([loss for _, _, loss in self._reports[first:]])
        self._forecaster.fit_run(keys, exposure, losses, end=self._budget)

    def _later_half(self) -> float:
        """Returns the samples after which reports are fitted by default."""
        return min(self._reports[-1][0] / 2, self._earliest_of_last(_MIN_REPORTS))

    def _earliest_of_last(self, count: int) -> float:
        """Returns the samples just before the last ``count`` reports."""
        return self._reports[-count - 1][0] if len(self._reports) > count else self._start[0]

    def _remember(self) -> None:
        """Stores the efficiency of the current candidate as a prior for later fits."""
        rate = self._forecaster.rates().get(self.current.key)
        if rate is not None:
            self._known[self.current.key] = (*rate, self._reports[-1][0])

    def _forecast(self, key: str, samples: float) -> Forecast:
        """Forecasts the loss after ``samples`` samples if the run continues with ``key`` from the last fit on."""
        return self._forecaster.forecast(key, samples - self._fit_from)

    def _worth(self, key: str) -> tuple[float, float]:
        """Returns mean and standard deviation of a candidate's log efficiency or, with ``seconds``, log goodput.

        A candidate of unknown throughput is assumed to be as fast as the current one.
        """
        rate, std = self._forecaster.rates().get(key, (0.0, 1.0))
        if self._axis == "seconds":
            rate += math.log(self._throughput(key) or self._throughput(self.current.key) or 1.0)
        return rate, std

    def _throughput(self, key: str) -> float | None:
        samples, seconds = self._spent[key]
        return self._throughputs.get(key) or (samples / seconds if samples > 0 and seconds > 0 else None)

    def _choose(
        self, chosen: int, action: str, reason: str, forecast: Forecast | None, deviation: float
    ) -> SwapDecision:
        """Switches to candidate ``chosen`` and returns the decision."""
        samples, _, loss = self._reports[-1]
        before, self._now = self.current.key, chosen
        rates = {str(key): rate for key, rate in self._forecaster.rates().items()}
        return SwapDecision(samples, before, self.current.key, action, reason, forecast, loss, deviation, rates)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
