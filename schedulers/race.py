"""A race between candidates: fed with reports, it answers who continues, who is pruned and why, and who has won.

Pure: it knows neither Ray nor torch, so a race can be replayed on recorded curves in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace

from schedulers.decision import Decision, State
from schedulers.forecast import Forecast, Forecaster, JointForecaster

#: Who is less probable than this to end lowest is pruned.
PRUNE_BELOW = 0.1
#: Nobody is pruned before so many reports of every candidate: fewer points do not show where a curve is going.
MIN_REPORTS = 3


@dataclass
class _Lane:
    state: State = State.RACING
    reason: str = ""
    decided: Decision | None = None  # the last one
    failed_from: Decision | None = None  # where it stood before it failed
    samples: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.state is not State.PRUNED

    @property
    def throughput(self) -> float:
        """Samples per second between the first and the last report (the first holds the start-up)."""
        if len(self.samples) < 2 or self.seconds[-1] <= self.seconds[0]:
            return math.nan
        return (self.samples[-1] - self.samples[0]) / (self.seconds[-1] - self.seconds[0])


class Race:
    """K candidates on one window of training; the lowest forecast at the end of the budget wins.

    After each report the curves are fitted again. A candidate whose probability of ending lowest falls below
    ``prune_below`` is pruned at once; the race ends when one is left, or when all that are left have spent the window.
    A race may be run from the middle of the run: all candidates then fork from the same weights at ``start``.

    Args:
        candidates: The keys of the candidates; ``enter`` adds more.
        budget: The whole run, in samples (``axis="samples"``) or seconds (``axis="seconds"``).
        window: What a candidate may spend in the race, in the same unit.
        axis: What is scarce. With ``seconds`` each candidate is forecast at the number of samples that it would
            reach at its own measured throughput, so the product of progress rate and throughput (goodput) decides.
        prune_below: A probability in [0, 1); 0 never prunes anyone before the window is spent.
        forecaster: Extrapolates the curves; the joint fit by default.
        min_reports: Nobody is pruned for its probabilities before every candidate has reported this often.
        start: Samples after which all candidates fork. The window, and the curves that the forecaster is given,
            count from there.
        start_seconds: Seconds of training at the fork; they matter with ``axis="seconds"``.

    Raises:
        ValueError: A candidate appears twice, or a number is out of its range.
    """

    def __init__(
        self,
        candidates: Iterable[Hashable] = (),
        *,
        budget: float,
        window: float,
        axis: str = "samples",
        prune_below: float = PRUNE_BELOW,
        forecaster: Forecaster | None = None,
        min_reports: int = MIN_REPORTS,
        start: float = 0.0,
        start_seconds: float = 0.0,
    ) -> None:
        if axis not in ("samples", "seconds"):
            raise ValueError(f"axis {axis!r} is unknown: use 'samples' or 'seconds'")
        self.start, self._origin = start, start if axis == "samples" else start_seconds
        if not self._origin >= 0 or not 0 < window <= budget - self._origin or not math.isfinite(budget):
            after = f" of which {self._origin:,} are spent" if self._origin else ""
            raise ValueError(
                f"a window of {window:,} does not fit into a budget of {budget:,}{after}: it must be in (0, the rest]"
            )
        if not 0 <= prune_below < 1:
            raise ValueError(f"prune_below {prune_below} is no probability in [0, 1)")
        if min_reports < 1:
            raise ValueError(f"min_reports {min_reports} is below 1")
        self.budget, self.window, self.axis = budget, window, axis
        self.prune_below, self.min_reports = prune_below, min_reports
        self.forecaster = forecaster if forecaster is not None else JointForecaster()
        self._lanes: dict[Hashable, _Lane] = {}
        self._expected = 0
        self._by_default = False  # whether the winner was the last one left because others had failed
        for key in candidates:
            if key in self._lanes:
                raise ValueError(f"candidate {key!r} appears twice")
            self.enter(key)

    # --- what happens -------------------------------------------------------------------------------------------

    def expect(self, count: int) -> list[Decision]:
        """Announces how many candidates there will be: before all have entered, the race neither prunes nor ends."""
        self._expected = count
        self.refit()
        return self._finish()

    def enter(self, key: Hashable) -> None:
        """Adds a candidate; after the end of the race it is pruned at once. One that is there stays as it is."""
        if key in self._lanes:
            return
        late = self.over
        self._lanes[key] = _Lane(State.PRUNED, "came when the race was decided") if late else _Lane()

    def report(self, key: Hashable, samples: float, loss: float, seconds: float = math.nan) -> list[Decision]:
        """Takes a candidate's loss after ``samples`` samples and ``seconds`` of training.

        Reports of candidates that are out of the race or have spent their window (all are judged on the same one),
        and reports that do not lie ahead of the last one (a restarted trial repeats itself), change nothing. A winner's
        are kept for the next ``refit``.

        Returns:
            Every change of state that follows, of this or of other candidates; empty: everybody continues.
        """
        lane = self._lanes.get(key)
        if lane is None or not lane.alive:
            return []
        if not math.isfinite(loss):
            return self.fail(key, f"its loss became {loss} after {samples:,.0f} samples")
        if lane.state is State.WAITING or samples <= (lane.samples or [self.start])[-1]:
            return []
        lane.samples.append(float(samples))
        lane.losses.append(float(loss))
        lane.seconds.append(float(seconds))
        if lane.state is State.WON:
            return []
        self.refit()
        decisions = self._prune_the_unlikely()
        if lane.state is State.RACING and self.spent(key) - self._origin >= self.window:
            decisions.append(self._move(key, State.WAITING, f"has spent the window of {self.window:,.0f} {self.axis}"))
        return decisions + self._finish()

    def fail(self, key: Hashable, reason: str) -> list[Decision]:
        """Drops a candidate that cannot continue; the others do. If the winner fails, nobody is left."""
        lane = self._lanes.get(key)
        if lane is None or not lane.alive:
            return []
        lane.failed_from = lane.decided or self._decision(key, {})
        pruned = self._move(key, State.PRUNED, reason)
        if lane.failed_from.state is not State.WON:
            self.refit()
        return [pruned, *self._finish()]

    def retry(self, keys: Iterable[Hashable]) -> list[Decision]:
        """Puts candidates that failed back to where they stood before.

        A race that has been decided on losses stays decided: of those who failed only its winner comes back. If the
        winner was merely the last one left, and has not spent its window, the race is open again.

        Returns:
            The state of every candidate that has come back, and what follows from it.
        """
        failed = [key for key in keys if key in self._lanes and self._lanes[key].failed_from is not None]
        won = [key for key in failed if self._before(key).state is State.WON]
        winner = won[0] if won else self.winner
        reopened = False
        if winner is not None:
            rivals = [key for key in failed if key != winner]
            reopened = bool(rivals) and self._by_default and self.spent(winner) - self._origin < self.window
            failed = [*won, *rivals] if reopened else won
        before = {key: self._before(key) for key in failed}
        for key, stood in before.items():
            lane = self._lanes[key]
            lane.state, lane.failed_from = State.RACING if reopened else stood.state, None
            lane.reason = f"{stood.reason}; is retried" if stood.reason and not reopened else "is retried"
        if reopened and winner not in failed:
            self._lanes[winner].state, self._lanes[winner].reason = State.RACING, "races again: others are retried"
            failed.append(winner)
        probabilities = self._probabilities()
        for key in failed:
            lane, decided = self._lanes[key], before.get(key)
            same = decided is not None and decided.state is lane.state and lane.state is not State.RACING
            # A decision that stands keeps the numbers that it was taken on.
            lane.decided = (
                replace(decided, reason=lane.reason) if same and decided else self._decision(key, probabilities)
            )
        decisions = [decision for key in failed if (decision := self._lanes[key].decided) is not None]
        if not failed or self.winner is not None:
            return decisions
        self._by_default = False
        self.refit()
        return [*decisions, *self._finish()]

    def complete(self, key: Hashable) -> list[Decision]:
        """Takes note that a candidate will report no more; it stays in the race with what it has shown."""
        lane = self._lanes.get(key)
        if lane is None or self.over or lane.state is not State.RACING:
            return []
        if not self._has_shown(key):
            return self.fail(key, "ended without reporting a loss")
        return [self._move(key, State.WAITING, "has finished"), *self._finish()]

    # --- how things stand ---------------------------------------------------------------------------------------

    @property
    def keys(self) -> list[Hashable]:
        return list(self._lanes)

    @property
    def alive(self) -> list[Hashable]:
        """The candidates that may still win, or have won."""
        return [key for key, lane in self._lanes.items() if lane.alive]

    @property
    def winner(self) -> Hashable | None:
        return next((key for key, lane in self._lanes.items() if lane.state is State.WON), None)

    @property
    def over(self) -> bool:
        """True when someone has won, or nobody is left."""
        return self._complete and (self.winner is not None or not self.alive)

    @property
    def _complete(self) -> bool:
        return len(self._lanes) >= max(self._expected, 1)

    def state(self, key: Hashable) -> State:
        return self._lanes[key].state

    def standings(self) -> list[Decision]:
        """How every candidate stands now, in the order of entry."""
        probabilities = self._probabilities()
        return [self._decision(key, probabilities) for key in self._lanes]

    def curve(self, key: Hashable) -> tuple[list[float], list[float]]:
        """The samples and losses that a candidate has reported in this race."""
        lane = self._lanes[key]
        return list(lane.samples), list(lane.losses)

    def spent(self, key: Hashable) -> float:
        """How far a candidate has come in the run, in units of the budget; the fork if it has not reported yet."""
        lane = self._lanes[key]
        reached = lane.samples if self.axis == "samples" else lane.seconds
        return reached[-1] if reached else self._origin

    @property
    def failed(self) -> list[Hashable]:
        """The candidates that could not continue, and have not been retried."""
        return [key for key, lane in self._lanes.items() if lane.failed_from is not None]

    @property
    def failed_winner(self) -> Hashable | None:
        """Who had won and has failed since."""
        return next((key for key in self.failed if self._before(key).state is State.WON), None)

    def reason(self, key: Hashable) -> str:
        """Why a candidate is in its state, in words; empty while it races."""
        return self._lanes[key].reason

    def failures(self) -> dict[Hashable, str]:
        """The reason of every pruned candidate."""
        return {key: lane.reason for key, lane in self._lanes.items() if lane.state is State.PRUNED}

    # --- how it decides -----------------------------------------------------------------------------------------

    def refit(self) -> None:
        """Fits all curves again. Every report of the race does; a winner's later ones leave the forecast as it was."""
        curves = {key: ([at - self.start for at in lane.samples], lane.losses) for key, lane in self._lanes.items()}
        self.forecaster.fit(curves, {key: self.horizon(key) for key in curves})

    def forecast(self, key: Hashable, at: float) -> Forecast:
        """The loss of a candidate once it has seen ``at`` samples, as of the last report."""
        return self.forecaster.forecast(key, at - self.start)

    def horizon(self, key: Hashable) -> float:
        """The number of samples at which a candidate's forecast counts."""
        if self.axis == "samples":
            return self.budget
        lane = self._lanes[key]
        if not lane.samples or math.isnan(lane.throughput):
            return math.nan
        return lane.samples[-1] + lane.throughput * max(self.budget - lane.seconds[-1], 0.0)

    def _probabilities(self) -> dict[Hashable, float]:
        horizons = {key: self.horizon(key) for key in self.alive if self._lanes[key].samples}
        known = {key: at - self.start for key, at in horizons.items() if math.isfinite(at)}
        return self.forecaster.probability_best(known) if known else {}

    def _prune_the_unlikely(self) -> list[Decision]:
        decisions: list[Decision] = []
        if not self._complete:
            return decisions
        while len(self.alive) > 1 and min(len(self._lanes[key].samples) for key in self.alive) >= self.min_reports:
            probabilities = self._probabilities()
            worst = min(probabilities, key=lambda key: probabilities[key], default=None)
            if worst is None or probabilities[worst] >= self.prune_below:
                break
            reason = f"its probability of finishing best is {probabilities[worst]:.1%}, below {self.prune_below:.0%}"
            decisions.append(self._move(worst, State.PRUNED, reason))
        return decisions

    def _finish(self) -> list[Decision]:
        alive = self.alive
        if self.over or not self._complete:
            return []
        if len(alive) == 1:
            if not self._has_shown(alive[0]):
                return []  # nobody wins without a loss
            self._by_default = bool(self.failed)
            return [self._move(alive[0], State.WON, "is the last one left" if len(self._lanes) > 1 else "runs alone")]
        if not alive or any(self._lanes[key].state is State.RACING for key in alive):
            return []
        probabilities = self._probabilities()
        best = max(alive, key=lambda key: probabilities.get(key, 0.0))
        expected = self._at_the_end(best)
        decisions = [
            self._move(
                key,
                State.PRUNED,
                f"is forecast to end at {self._at_the_end(key).mean:.3f}, the winner at {expected.mean:.3f}",
            )
            for key in alive
            if key != best
        ]
        decisions.append(self._move(best, State.WON, f"has the lowest forecast, {expected.mean:.3f}", probabilities))
        return decisions

    def _has_shown(self, key: Hashable) -> bool:
        """Whether there is a finite loss of a candidate, or of the weights that it started from."""
        return bool(self._lanes[key].samples) or self.start > 0

    def _before(self, key: Hashable) -> Decision:
        """Where a candidate that has failed stood before."""
        before = self._lanes[key].failed_from
        assert before is not None
        return before

    def _at_the_end(self, key: Hashable) -> Forecast:
        at = self.horizon(key)
        if not self._lanes[key].samples or math.isnan(at):
            return Forecast(math.nan, math.inf)
        return self.forecast(key, at)

    def _move(
        self, key: Hashable, state: State, reason: str, probabilities: dict[Hashable, float] | None = None
    ) -> Decision:
        decision_numbers = probabilities if probabilities is not None else self._probabilities()
        lane = self._lanes[key]
        lane.state, lane.reason = state, reason
        lane.decided = self._decision(key, decision_numbers)
        return lane.decided

    def _decision(self, key: Hashable, probabilities: dict[Hashable, float]) -> Decision:
        lane = self._lanes[key]
        rates = self.forecaster.rates() if isinstance(self.forecaster, JointForecaster) else {}
        return Decision(
            key=key,
            state=lane.state,
            reason=lane.reason,
            samples=lane.samples[-1] if lane.samples else self.start,
            loss=lane.losses[-1] if lane.losses else math.nan,
            forecast=self._at_the_end(key),
            probability_best=probabilities.get(key, 0.0),
            log_rate=rates.get(key),
            throughput=lane.throughput,
        )
