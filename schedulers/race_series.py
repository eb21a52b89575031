"""A run from its start to its end: a race, the winner's training and, where it is asked for, more races on the way.

Pure, as a race is. Everything that happens is kept as an ordered list of events, and every decision follows from it:
replaying the events leads to where the run stood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from schedulers.decision import Decision, State
from schedulers.events import Complete, Enter, Event, Expect, Fail, Report, Restart, Retry
from schedulers.forecast import PREDICTORS
from schedulers.forecast.deviation import PATIENCE, THRESHOLD, Deviation
from schedulers.race import MIN_REPORTS, PRUNE_BELOW, Race
from schedulers.rerace import Rerace, ReracePlan


class RaceSeries:
    """Runs races one after the other between the same candidates, and watches the winner in between.

    In a further race everybody forks from the winner's weights of that moment (``source``), also those that lost
    before. Who failed or has finished does not come back.

    Args:
        budget, window, axis, prune_below, min_reports: See ``Race``.
        predictor: A name in ``PREDICTORS``.
        rerace: When there is another race: ``never``, ``on_deviation`` (the winner does worse than forecast), or
            ``{"at": [...]}``, shares of the budget.
        rerace_window: The window of further races; None: the same.
        patience, threshold: When it does worse than forecast. See ``Deviation``.

    Raises:
        ValueError: A number is out of its range, or a name is unknown.
    """

    def __init__(
        self,
        *,
        budget: float,
        window: float,
        axis: str = "samples",
        prune_below: float = PRUNE_BELOW,
        predictor: str = "joint",
        min_reports: int = MIN_REPORTS,
        rerace: Rerace = "never",
        rerace_window: float | None = None,
        patience: int = PATIENCE,
        threshold: float = THRESHOLD,
    ) -> None:
        if predictor not in PREDICTORS:
            raise ValueError(f"predictor {predictor!r} is unknown: use one of {', '.join(PREDICTORS)}")
        self._predictor = predictor
        self._settings: dict[str, Any] = {
            "budget": budget, "axis": axis, "prune_below": prune_below, "min_reports": min_reports,
        }  # fmt: skip
        self.races = [Race(window=window, forecaster=PREDICTORS[predictor](), **self._settings)]
        self.plan = ReracePlan.of(rerace, window=window, rerace_window=rerace_window, budget=budget)
        self._deviation = Deviation(patience, threshold)
        self._expected = 0
        #: Who does not come back in another race: failed, or has finished.
        self.out: set[Hashable] = set()
        #: Whose weights the current race has started from; None in the first one.
        self.source: Hashable | None = None
        #: Everything that has happened, oldest first.
        self.events: list[Event] = []
        #: Called with every event before anything follows from it.
        self.record: Callable[[Event], None] | None = None
        #: Everything that has been decided, oldest first.
        self.decisions: list[Decision] = []

    # --- what happens -------------------------------------------------------------------------------------------

    def expect(self, count: int) -> list[Decision]:
        """Says how many candidates there will be. See ``Race.expect``."""
        if count == self._expected or len(self.races) > 1 or self.race.over:
            return []
        return self.take(Expect(count))

    def enter(self, key: Hashable) -> list[Decision]:
        """Adds a candidate; one that is there stays as it is."""
        return self.take(Enter(key)) if key not in self.races[0].keys else []

    def report(self, key: Hashable, samples: float, loss: float, seconds: float = math.nan) -> list[Decision]:
        """Takes a candidate's loss. See ``Race.report``; a winner's loss may begin another race."""
        return self.take(Report(key, float(samples), float(loss), float(seconds)))

    def fail(self, key: Hashable, reason: str) -> list[Decision]:
        """Drops a candidate, until it is retried."""
        return self.take(Fail(key, reason))

    def complete(self, key: Hashable) -> list[Decision]:
        """Takes note that a candidate will report no more. See ``Race.complete``."""
        return self.take(Complete(key))

    def restart(self, key: Hashable, samples: float, reason: str) -> list[Decision]:
        """Takes note that a candidate lost a process and continues from its last checkpoint. Changes nothing."""
        return self.take(Restart(key, float(samples), reason))

    def retry(self, keys: Iterable[Hashable]) -> list[Decision]:
        """Tries candidates that failed again. See ``Race.retry``."""
        return self.take(Retry(tuple(keys)))

    def take(self, event: Event) -> list[Decision]:
        """Records an event, then does what follows from it.

        Returns:
            Every decision that follows.
        """
        if self.record is not None:
            self.record(event)
        self.events.append(event)
        decisions = self._follow(event)
        self.decisions += decisions
        if not isinstance(event, Retry) and any(decision.state is State.WON for decision in decisions):
            self._expect()
        return decisions

    # --- how things stand ---------------------------------------------------------------------------------------

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
        """What was lost to the machine, oldest first."""
        return [event for event in self.events if isinstance(event, Restart)]

    @property
    def unforked(self) -> list[Hashable]:
        """The candidates that have yet to show that they have started from the source's weights."""
        if self.source is None:
            return []
        return [key for key in self.race.alive if key != self.source and not self.race.curve(key)[0]]

    @property
    def may_race_again(self) -> bool:
        """Whether those who have lost may be needed once more."""
        if self.race.over and (self.race.winner is None or self.race.winner in self.out):
            return False
        spent = max(map(self.race.spent, self.race.keys), default=0.0)
        return len(self._able) > 1 and math.isfinite(self.plan.next(spent, len(self.races) - 1))

    def comes_back(self, key: Hashable) -> bool:
        """Whether a candidate that has lost may be needed once more."""
        return self.may_race_again and key not in self.out

    @property
    def explored(self) -> float:
        """Samples that went into candidates that lost their race, in all races."""
        return sum(
            max(race.curve(key)[0], default=race.start) - race.start
            for race in self.races
            for key in race.keys
            if key != race.winner
        )

    def state(self, key: Hashable) -> State:
        """Where a candidate stands in the current race; who does not take part in it is pruned."""
        return self.race.state(key) if key in self.race.keys else State.PRUNED

    def reason(self, key: Hashable) -> str:
        """Why a candidate is in its state, in words."""
        return next(race.reason(key) for race in reversed(self.races) if key in race.keys)

    # --- how it is done -----------------------------------------------------------------------------------------

    def _follow(self, event: Event) -> list[Decision]:
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
            case Fail(key, reason):
                self.out.add(key)
                return [*self._orphan(key), *self.race.fail(key, reason)]
            case Complete(key):
                self.out.add(key)
                return [*self._orphan(key), *self.race.complete(key)]
            case Retry(keys):
                return self._retry(keys)
        return []

    def _report(self, event: Report) -> list[Decision]:
        key, samples, loss, seconds = event.candidate, event.samples, event.loss, event.seconds
        decisions: list[Decision] = []
        if not math.isfinite(loss):
            self.out.add(key)
            decisions += self._orphan(key)
        race = self.race
        stretches = key == race.winner and samples > max(race.curve(key)[0], default=race.start)
        decisions += race.report(key, samples, loss, seconds)
        if stretches and race.winner is not None:
            decisions += self._continue(samples, loss, seconds)
        return decisions

    def _retry(self, keys: tuple[Hashable, ...]) -> list[Decision]:
        failed = self.failed
        decisions = self.race.retry(keys)
        self.out -= {key for key in keys if key in failed and (key not in self.race.keys or key in self.race.alive)}
        return decisions

    @property
    def _able(self) -> list[Hashable]:
        return [key for key in self.races[0].keys if key not in self.out]

    def _orphan(self, key: Hashable) -> list[Decision]:
        """Who has yet to fork from a source that is gone cannot start without it."""
        decisions: list[Decision] = []
        for orphan in self.unforked if key == self.source else []:
            self.out.add(orphan)
            decisions += self.race.fail(orphan, f"has no weights to start from: {key} is gone")
        return decisions

    def _expect(self) -> None:
        if (winner := self.race.winner) is not None:  # who won may have failed since
            self._deviation.expect(partial(self.race.forecast, winner))

    def _continue(self, samples: float, loss: float, seconds: float) -> list[Decision]:
        """Compares a winner's report with the forecast."""
        deviation = self._deviation.report(samples, loss)
        spent = self.race.spent(self.race.winner)
        if len(self._able) > 1 and spent >= self.plan.next(spent, len(self.races) - 1):
            if not self.plan.on_deviation:
                return self._race_again(samples, seconds, f"{spent / self.plan.budget:.0%} of the budget is spent")
            if self._deviation.underperformed:
                worse = f"lay {-self._deviation.mean:.1f} standard deviations above the forecast"
                return self._race_again(samples, seconds, f"its last {self._deviation.patience} reports {worse}")
        if math.isnan(deviation) or (self._deviation.settled and not self._deviation.underperformed):
            self.race.refit()
            self._expect()
        return []

    def _race_again(self, samples: float, seconds: float, why: str) -> list[Decision]:
        self.source = self.race.winner
        left = self.plan.budget - self.race.spent(self.source)
        self.races.append(
            Race(
                self._able,
                window=min(self.plan.window, left),
                start=samples,
                start_seconds=seconds,
                forecaster=PREDICTORS[self._predictor](head_start=samples),
                **self._settings,
            )
        )
        fork = f"forks from {self.source} after {samples:,.0f} samples: {why}"
        return [
            replace(standing, reason=f"races again: {why}" if standing.key == self.source else fork)
            for standing in self.race.standings()
        ]
