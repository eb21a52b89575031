"""A whole run: a race, the winner's training and, optionally, further races.

Independent of Ray and torch. All decisions follow from the ordered list of events: replaying it restores the state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from schedulers.decision import Decision, State
from schedulers.events import Complete, Enter, Event, Expect, Fail, Measure, Report, Restart, Retry
from schedulers.forecast import FORECASTERS
from schedulers.forecast.deviation import PATIENCE, THRESHOLD, Deviation
from schedulers.race import MIN_REPORTS, PRUNE_BELOW, Race, Rule
from schedulers.rerace import Rerace, ReracePlan


class RaceSeries:
    """Runs races between the same candidates, and compares the winner with its forecast in between.

    In a further race all candidates fork from the winner's current weights (``source``), including those that were
    pruned. Candidates that failed or finished do not take part again.

    Args:
        budget, window, axis, rule, prune_below, tolerance, min_reports: See ``Race``.
        forecaster: A name in ``FORECASTERS``.
        averaged: Whether the losses are those of averaged weights (such as an EMA).
        rerace: When further races start: ``never``, ``on_deviation`` (the winner underperforms), or ``{"at": [...]}``,
            fractions of the budget.
        rerace_window: Window of further races; None: the same.
        patience, threshold: When the winner underperforms. See ``Deviation``.

    Raises:
        ValueError: A number is out of range, or a name is unknown.
    """

    def __init__(
        self,
        *,
        budget: float,
        window: float,
        axis: str = "samples",
        rule: Rule = "halving",
        prune_below: float = PRUNE_BELOW,
        tolerance: float | None = None,
        forecaster: str = "joint",
        averaged: bool = False,
        min_reports: int = MIN_REPORTS,
        rerace: Rerace = "never",
        rerace_window: float | None = None,
        patience: int = PATIENCE,
        threshold: float = THRESHOLD,
    ) -> None:
        if forecaster not in FORECASTERS:
            raise ValueError(f"forecaster {forecaster!r} is unknown: use one of {', '.join(FORECASTERS)}")
        self._forecaster, self._averaged = forecaster, averaged
        self._settings: dict[str, Any] = {
            "budget": budget, "axis": axis, "rule": rule, "prune_below": prune_below, "tolerance": tolerance,
            "min_reports": min_reports,
        }  # fmt: skip
        self.races = [Race(window=window, forecaster=FORECASTERS[forecaster](averaged=averaged), **self._settings)]
        self.plan = ReracePlan.of(rerace, window=window, rerace_window=rerace_window, budget=budget)
        self._deviation = Deviation(patience, threshold)
        self._expected = 0
        #: Samples per second of every candidate whose throughput was measured with the device to itself.
        self.throughputs: dict[Hashable, float] = {}
        #: Candidates that take part in no further race, because they failed or finished.
        self.out: set[Hashable] = set()
        #: The candidate whose weights the current race started from; None in the first race.
        self.source: Hashable | None = None
        #: All events, oldest first.
        self.events: list[Event] = []
        #: Called with every event before it is handled.
        self.record: Callable[[Event], None] | None = None
        #: All decisions, oldest first.
        self.decisions: list[Decision] = []

    # --- events -------------------------------------------------------------------------------------------------

    def expect(self, count: int) -> list[Decision]:
        """Sets the number of candidates. See ``Race.expect``."""
        if count == self._expected or len(self.races) > 1 or self.race.over:
            return []
        return self.take(Expect(count))

    def enter(self, key: Hashable) -> list[Decision]:
        """Adds a candidate unless it is there."""
        return self.take(Enter(key)) if key not in self.races[0].keys else []

    def report(
        self, key: Hashable, samples: float, loss: float, seconds: float = math.nan, learning_rate: float = math.nan
    ) -> list[Decision]:
        """Adds a candidate's loss. See ``Race.report``. A loss of the winner may start another race."""
        return self.take(Report(key, float(samples), float(loss), float(seconds), float(learning_rate)))

    def measure(self, key: Hashable, throughput: float) -> list[Decision]:
        """Sets a candidate's throughput unless it is known. See ``Race.measure``."""
        return self.take(Measure(key, float(throughput))) if key not in self.throughputs else []

    def fail(self, key: Hashable, reason: str) -> list[Decision]:
        """Prunes a candidate that cannot continue, until it is retried."""
        return self.take(Fail(key, reason))

    def complete(self, key: Hashable) -> list[Decision]:
        """Marks a candidate as finished. See ``Race.complete``."""
        return self.take(Complete(key))

    def restart(self, key: Hashable, samples: float, reason: str) -> list[Decision]:
        """Records that a candidate lost a process and resumes from its last checkpoint. Changes no state."""
        return self.take(Restart(key, float(samples), reason))

    def retry(self, keys: Iterable[Hashable]) -> list[Decision]:
        """Retries failed candidates. See ``Race.retry``."""
        return self.take(Retry(tuple(keys)))

    def take(self, event: Event) -> list[Decision]:
        """Records an event and returns the decisions that follow."""
        if self.record is not None:
            self.record(event)
        self.events.append(event)
        decisions = self._handle(event)
        self.decisions += decisions
        if not isinstance(event, Retry) and any(decision.state is State.WON for decision in decisions):
            self._renew_forecast()
        return decisions

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def race(self) -> Race:
        """The current race, or the last one."""
        return self.races[-1]

    @property
    def failed(self) -> dict[Hashable, str]:
        """The candidates that failed and have not been retried, with the reasons."""
        return {key: race.reason(key) for race in self.races for key in race.failed if key in self.out}

    @property
    def restarts(self) -> list[Restart]:
        """All restarts, oldest first."""
        return [event for event in self.events if isinstance(event, Restart)]

    @property
    def unforked(self) -> list[Hashable]:
        """The candidates that have not reported since they were to fork from the source."""
        if self.source is None:
            return []
        return [key for key in self.race.alive if key != self.source and not self.race.curve(key)[0]]

    @property
    def may_race_again(self) -> bool:
        """Whether another race is possible."""
        if self.race.over and (self.race.winner is None or self.race.winner in self.out):
            return False
        spent = max(map(self.race.spent, self.race.keys), default=0.0)
        return len(self._able) > 1 and math.isfinite(self.plan.next(spent, len(self.races) - 1))

    def may_rejoin(self, key: Hashable) -> bool:
        """Returns whether a pruned candidate may take part in another race."""
        return self.may_race_again and key not in self.out

    def origin(self, key: Hashable) -> tuple[float, float]:
        """Returns the samples, and the budget spent, at which a candidate last forked; zeros if it never did."""
        origin = (0.0, 0.0)
        for before, race in itertools.pairwise(self.races):
            if key in race.keys and key != before.winner:
                origin = race.start, race.spent(key, race.start)
        return origin

    @property
    def explored(self) -> float:
        """Samples spent on candidates that did not win, over all races."""
        return sum(
            max(race.curve(key)[0], default=race.start) - race.start
            for race in self.races
            for key in race.keys
            if key != race.winner
        )

    def state(self, key: Hashable) -> State:
        """Returns a candidate's state in the current race; pruned if it does not take part."""
        return self.race.state(key) if key in self.race.keys else State.PRUNED

    def reason(self, key: Hashable) -> str:
        """Returns the reason for a candidate's state."""
        return next(race.reason(key) for race in reversed(self.races) if key in race.keys)

    @property
    def _able(self) -> list[Hashable]:
        return [key for key in self.races[0].keys if key not in self.out]

    # --- rules --------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> list[Decision]:
        match event:
            case Expect(count):
                self._expected = count
                return self.race.expect(count)
            case Enter(key):
                self.races[0].enter(key)
                if self.races[0].state(key) is State.PRUNED:
                    self.out.add(key)
            case Report():
                return self._report(event)
            case Measure(key, throughput):
                self.throughputs[key] = throughput
                return self.race.measure(key, throughput)
            case Fail(key, reason):
                return [*self._remove(key), *self.race.fail(key, reason)]
            case Complete(key):
                return [*self._remove(key), *self.race.complete(key)]
            case Retry(keys):
                failed = self.failed
                decisions = self.race.retry(keys)
                self.out -= {k for k in keys if k in failed and (k not in self.race.keys or k in self.race.alive)}
                return decisions
        return []

    def _report(self, event: Report) -> list[Decision]:
        key, samples, loss, seconds = event.candidate, event.samples, event.loss, event.seconds
        decisions = [] if math.isfinite(loss) else self._remove(key)
        race = self.race
        new = key == race.winner and samples > max(race.curve(key)[0], default=race.start)
        decisions += race.report(key, samples, loss, seconds, event.learning_rate)
        if new and race.winner is not None:
            decisions += self._watch_winner(samples, loss, seconds)
        return decisions

    def _remove(self, key: Hashable) -> list[Decision]:
        """Excludes a candidate from further races. Candidates that have yet to fork from it fail."""
        self.out.add(key)
        decisions: list[Decision] = []
        for fork in self.unforked if key == self.source else []:
            self.out.add(fork)
            decisions += self.race.fail(fork, f"no weights to start from: {key} stopped before the fork")
        return decisions

    def _renew_forecast(self) -> None:
        if (winner := self.race.winner) is not None:  # it may have failed since
            self._deviation.expect(partial(self.race.forecast, winner))

    def _watch_winner(self, samples: float, loss: float, seconds: float) -> list[Decision]:
        """Compares the winner's report with its forecast, and starts another race where the plan says so."""
        deviation = self._deviation.report(samples, loss)
        spent = self.race.spent(self.race.winner)
        if len(self._able) > 1 and spent >= self.plan.next(spent, len(self.races) - 1):
            if not self.plan.on_deviation:
                return self._race_again(samples, seconds, f"{spent / self.plan.budget:.0%} of the budget spent")
            if self._deviation.underperformed:
                above = f"{-self._deviation.mean:.1f} standard deviations above the forecast"
                return self._race_again(samples, seconds, f"last {self._deviation.patience} losses {above} on average")
        if math.isnan(deviation) or (self._deviation.settled and not self._deviation.underperformed):
            self.race.refit()
            self._renew_forecast()
        return []

    def _race_again(self, samples: float, seconds: float, why: str) -> list[Decision]:
        self.source = self.race.winner
        spent = self.race.spent(self.source)
        left = self.plan.budget - spent
        self.races.append(
            Race(
                self._able,
                window=min(self.plan.window, left),
                start=samples,
                start_seconds=spent if self.race.axis == "seconds" else seconds,
                forecaster=FORECASTERS[self._forecaster](head_start=samples, averaged=self._averaged),
                **self._settings,
            )
        )
        for key in self._able:
            if key in self.throughputs:
                self.race.measure(key, self.throughputs[key])
        fork = f"forks from {self.source} after {samples:,.0f} samples: {why}"
        return [
            replace(standing, reason=f"races again: {why}" if standing.key == self.source else fork)
            for standing in self.race.standings()
        ]
