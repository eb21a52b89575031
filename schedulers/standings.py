"""Loss curves, states and forecasts of the candidates of a race."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schedulers.decision import Decision, State
from schedulers.forecast import Forecast, Forecaster, JointForecaster, TieBreak

#: Points of a decision's forecast path.
_PATH = 24


@dataclass
class Entry:
    """A candidate in a race: its state and its reports."""

    state: State = State.RACING
    reason: str = ""
    decided: Decision | None = None  # the last decision
    failed_from: Decision | None = None  # the decision before it failed
    samples: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)  # nan: not reported
    throughput_alone: float = math.nan  # measured with the device to itself
    finished: bool = False  # it reports no more: its last loss counts

    @property
    def alive(self) -> bool:
        return self.state is not State.PRUNED

    @property
    def throughput(self) -> float:
        """Samples per second between the first and the last report (the first includes the start-up)."""
        if len(self.samples) < 2 or self.seconds[-1] <= self.seconds[0]:
            return math.nan
        return (self.samples[-1] - self.samples[0]) / (self.seconds[-1] - self.seconds[0])


class Standings:
    """Stores the reports of all candidates and forecasts their losses at the end of the budget.

    Args:
        budget: Length of the whole run, in units of ``axis``.
        axis: ``samples`` or ``seconds``.
        rule: ``halving`` or ``forecast``.
        forecaster: Extrapolates the curves.
        start: Samples at which the curves begin.
        origin: The same in units of ``axis``.
        tolerance: Candidates are equal if their losses differ by at most this fraction of the decrease in loss.
    """

    def __init__(
        self,
        *,
        budget: float,
        axis: str,
        rule: str,
        forecaster: Forecaster,
        start: float,
        origin: float,
        tolerance: float,
    ) -> None:
        self.budget, self.axis, self.rule, self._forecaster, self.start = budget, axis, rule, forecaster, start
        self._origin, self.tolerance = origin, tolerance
        self._entries: dict[Hashable, Entry] = {}
        self._unfitted: tuple[Any, ...] | None = None  # the curves of the last refit, until a forecast is needed

    @property
    def keys(self) -> list[Hashable]:
        return list(self._entries)

    @property
    def alive(self) -> list[Hashable]:
        """The candidates that are not pruned."""
        return [key for key, entry in self._entries.items() if entry.alive]

    @property
    def winner(self) -> Hashable | None:
        return next((key for key, entry in self._entries.items() if entry.state is State.WON), None)

    @property
    def failed(self) -> list[Hashable]:
        """The candidates that failed and have not been retried."""
        return [key for key, entry in self._entries.items() if entry.failed_from is not None]

    @property
    def failed_winner(self) -> Hashable | None:
        """The winner, if it has failed since; else None."""
        return next((key for key in self.failed if self._before(key).state is State.WON), None)

    def state(self, key: Hashable) -> State:
        return self._entries[key].state

    def reason(self, key: Hashable) -> str:
        """Returns the reason for a candidate's state; empty while it races."""
        return self._entries[key].reason

    def failures(self) -> dict[Hashable, str]:
        """Returns the reason of every pruned candidate."""
        return {key: entry.reason for key, entry in self._entries.items() if entry.state is State.PRUNED}

    def standings(self) -> list[Decision]:
        """Returns the current state and numbers of every candidate, in the order of entry."""
        probabilities = self._probabilities()
        return [self._decision(key, probabilities) for key in self._entries]

    def curve(self, key: Hashable) -> tuple[list[float], list[float]]:
        """Returns the samples and losses that a candidate has reported in this race."""
        entry = self._entries[key]
        return list(entry.samples), list(entry.losses)

    def spent(self, key: Hashable, samples: float | None = None) -> float:
        """Returns the part of the budget that a candidate has spent; before its first report, that of the start.

        Args:
            key: The candidate.
            samples: Samples seen, if they are not those of its last report.
        """
        entry = self._entries[key]
        seen = (entry.samples or [self.start])[-1] if samples is None else samples
        if self.axis == "samples":
            return seen
        if math.isfinite(entry.throughput_alone):
            return self._origin + (seen - self.start) / entry.throughput_alone
        return (entry.seconds or [self._origin])[-1]

    @property
    def forecaster(self) -> Forecaster:
        """The forecaster, fitted to the curves of the last ``refit``."""
        if self._unfitted is not None:
            self._forecaster.fit(*self._unfitted)
            self._unfitted = None
        return self._forecaster

    def refit(self) -> None:
        """Fits all curves, once a forecast is needed. Reports of the race call it; the winner's later ones do not."""
        samples = {key: [at - self.start for at in entry.samples] for key, entry in self._entries.items()}
        self._unfitted = (
            {key: (samples[key], list(entry.losses)) for key, entry in self._entries.items()},
            {key: self.horizon(key) for key in self._entries},
            {key: (samples[key], list(entry.learning_rates)) for key, entry in self._entries.items()},
        )

    def forecast(self, key: Hashable, at: float) -> Forecast:
        """Forecasts the loss of a candidate after ``at`` samples, from the last fit."""
        return self.forecaster.forecast(key, at - self.start)

    def horizon(self, key: Hashable) -> float:
        """Returns the samples that a candidate will have seen at the end of the budget; nan if unknown.

        A budget in seconds is converted with the throughput that was measured alone, or else with that of the race.
        """
        if self.axis == "samples":
            return self.budget
        entry = self._entries[key]
        if math.isfinite(entry.throughput_alone):
            return self.start + entry.throughput_alone * (self.budget - self._origin)
        if not entry.samples or math.isnan(entry.throughput):
            return math.nan
        return entry.samples[-1] + entry.throughput * max(self.budget - entry.seconds[-1], 0.0)

    def _before(self, key: Hashable) -> Decision:
        """Returns the last decision on a candidate before it failed."""
        before = self._entries[key].failed_from
        assert before is not None
        return before

    def _observed(self, at: float = math.inf) -> tuple[float, dict[Hashable, float]]:
        """Returns the point of the budget closest to ``at`` at which all candidates have reported, and their losses.

        Between two reports, losses are interpolated, so that they do not depend on the order in which candidates
        report. Without a point that all have reached, the point is nan.
        """
        curves = {}
        for key in self.alive:
            entry = self._entries[key]
            known = self.axis == "samples" or math.isfinite(entry.throughput_alone)
            curves[key] = [self.spent(key, at) for at in entry.samples] if known else entry.seconds
        if not all(curves.values()):
            return math.nan, {}
        going = [spent for key, spent in curves.items() if not self._entries[key].finished] or list(curves.values())
        first, last = max(spent[0] for spent in curves.values()), min(spent[-1] for spent in going)
        common = min(max(at, first), last)
        losses = {key: float(np.interp(common, spent, self._entries[key].losses)) for key, spent in curves.items()}
        return math.nan if first > last else common, losses

    def _tie_break(self, losses: Iterable[float]) -> TieBreak | None:
        """Returns the rule for almost equal candidates with these losses.

        None: there is no tolerance, the budget is in seconds, or not all throughputs were measured. The throughput in
        the race is not used, because candidates that share a device slow each other down.
        """
        speeds = {key: self._entries[key].throughput_alone for key in self.alive}
        known = [loss for loss in losses if math.isfinite(loss)]
        if not (self.tolerance and known) or self.axis == "seconds" or not all(map(math.isfinite, speeds.values())):
            return None
        first = max(entry.losses[0] for entry in self._entries.values() if entry.losses)
        return TieBreak(self.tolerance * max(first - min(known), 0.0), speeds)

    def _forecast_ties(self) -> TieBreak | None:
        if self.rule != "forecast" or not all(math.isfinite(self._entries[key].throughput_alone) for key in self.alive):
            return None
        return self._tie_break(self._final_forecast(key).mean for key in self.alive)

    def _probabilities(self, *, ties: bool = True) -> dict[Hashable, float]:
        # With a budget in seconds, slow candidates report rarely; a single report is too few to compare them.
        least = 1 if self.axis == "samples" else 2
        horizons = {key: self.horizon(key) for key in self.alive if len(self._entries[key].samples) >= least}
        known = {key: at - self.start for key, at in horizons.items() if math.isfinite(at)}
        return self.forecaster.probability_best(known, self._forecast_ties() if ties else None) if known else {}

    def _final_forecast(self, key: Hashable) -> Forecast:
        at = self.horizon(key)
        if not self._entries[key].samples or math.isnan(at):
            return Forecast(math.nan, math.inf)
        return self.forecast(key, at)

    def _path(self, key: Hashable) -> tuple[tuple[float, Forecast], ...]:
        """Returns forecasts at evenly spaced samples from the last report to the end of the budget."""
        entry, end = self._entries[key], self.horizon(key)
        if not entry.samples or math.isnan(end):
            return ()
        ahead = np.linspace(entry.samples[-1], end, _PATH).tolist()
        return tuple((at, self.forecast(key, at)) for at in ahead)

    def _decision(self, key: Hashable, probabilities: dict[Hashable, float]) -> Decision:
        entry = self._entries[key]
        rates = self.forecaster.rates() if isinstance(self.forecaster, JointForecaster) else {}
        return Decision(
            key=key,
            state=entry.state,
            reason=entry.reason,
            samples=entry.samples[-1] if entry.samples else self.start,
            loss=entry.losses[-1] if entry.losses else math.nan,
            forecast=self._final_forecast(key),
            probability_best=probabilities.get(key, 0.0),
            log_rate=rates.get(key),
            throughput=entry.throughput,
            throughput_alone=entry.throughput_alone,
        )
