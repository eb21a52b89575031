"""A race between candidates: takes their losses, prunes the worse ones, and picks a winner.

Independent of Ray and torch: a race can be replayed on recorded curves in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Literal

from schedulers.decision import Decision, State
from schedulers.forecast import Forecaster, JointForecaster
from schedulers.halving import HALVINGS, halved
from schedulers.standings import Entry, Standings

#: Candidates below this probability of finishing best are pruned.
PRUNE_BELOW = 0.1
#: How a race decides: by the losses that candidates have reported, or by forecasts of their losses at the end.
Rule = Literal["halving", "forecast"]
#: Candidates whose losses differ by at most this fraction of the decrease in loss are equal. Chosen on recorded runs
#: (docs/choosing.md): it costs no accuracy there. Relative to the decrease, early differences are about five times as
#: large as those at the end.
TOLERANCE: dict[Rule, float] = {"halving": 0.05, "forecast": 0.01}
#: No candidate is pruned by a forecast before every candidate has reported this often: fewer points do not determine a
#: curve.
MIN_REPORTS = 3


class Race(Standings):
    """Trains candidates for a window of the budget; the best one at its end wins.

    With ``rule="halving"``, losses are compared after equal parts of the budget: after 40 and 60 % of the window the
    worse half is pruned, and at its end the lowest loss wins. With ``rule="forecast"``, losses at the end of the budget
    are forecast after every report: a candidate whose probability of finishing best falls below ``prune_below`` is
    pruned at once, and at the end of the window the lowest forecast wins.

    Candidates whose losses (or forecasts) are almost equal are equal: the fastest of them wins, if the throughput of
    all was measured (``measure``). The race ends when one candidate is left, or when all that are left have spent the
    window. A race may also start in the middle of a run: all candidates then fork from the same weights at ``start``.

    Args:
        candidates: Keys of the candidates; ``enter`` adds more.
        budget: Length of the whole run, in samples (``axis="samples"``) or seconds (``axis="seconds"``).
        window: Part of the budget that each candidate may spend in the race.
        axis: Unit of the budget. With ``seconds`` candidates are compared after equal time at their measured
            throughput, so that goodput (statistical efficiency times throughput) decides.
        rule: See above.
        tolerance: Candidates are equal if their losses differ by at most this fraction of the decrease in loss since
            the first report (with ``forecast``: their forecasts, and the decrease until the end); 0: the lowest wins;
            None: ``TOLERANCE``. Not used with ``axis="seconds"``, where a faster candidate is compared after more
            samples.
        prune_below: Probability in [0, 1) for ``forecast``. 0 prunes no candidate before the window is spent, with
            either rule; other values have no effect on ``halving``.
        forecaster: Extrapolates the curves, for ``forecast`` and for the numbers of decisions; by default
            ``JointForecaster``.
        min_reports: No candidate is pruned by a forecast before every candidate has reported this often.
        start: Samples at which all candidates fork. The window and the curves start there.
        start_seconds: Seconds of training at the fork; used with ``axis="seconds"``.

    Raises:
        ValueError: A candidate appears twice, or a number is out of range.
    """

    def __init__(
        self,
        candidates: Iterable[Hashable] = (),
        *,
        budget: float,
        window: float,
        axis: str = "samples",
        rule: Rule = "halving",
        prune_below: float = PRUNE_BELOW,
        tolerance: float | None = None,
        forecaster: Forecaster | None = None,
        min_reports: int = MIN_REPORTS,
        start: float = 0.0,
        start_seconds: float = 0.0,
    ) -> None:
        if axis not in ("samples", "seconds"):
            raise ValueError(f"axis {axis!r} is unknown: use 'samples' or 'seconds'")
        origin = start if axis == "samples" else start_seconds
        if not origin >= 0 or not 0 < window <= budget - origin or not math.isfinite(budget):
            after = f" of which {origin:,} are spent" if origin else ""
            raise ValueError(
                f"a window of {window:,} does not fit into a budget of {budget:,}{after}: it must be in (0, the rest]"
            )
        if rule not in TOLERANCE:
            raise ValueError(f"rule {rule!r} is unknown: use {' or '.join(map(repr, TOLERANCE))}")
        tolerance = TOLERANCE[rule] if tolerance is None else tolerance
        if not 0 <= prune_below < 1:
            raise ValueError(f"prune_below {prune_below} is not a probability in [0, 1)")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance {tolerance} is not a fraction of the decrease in loss in [0, 1)")
        if min_reports < 1:
            raise ValueError(f"min_reports {min_reports} is below 1")
        super().__init__(
            budget=budget,
            axis=axis,
            rule=rule,
            forecaster=forecaster or JointForecaster(),
            start=start,
            origin=origin,
            tolerance=tolerance,
        )
        self.window, self.prune_below, self.min_reports = window, prune_below, min_reports
        self._halvings = list(HALVINGS) if rule == "halving" and prune_below else []  # those to come
        self._expected = 0
        self._by_default = False  # whether the winner was the last candidate left because others had failed
        for key in candidates:
            if key in self._entries:
                raise ValueError(f"candidate {key!r} appears twice")
            self.enter(key)

    @property
    def over(self) -> bool:
        """Whether a candidate has won, or all are pruned."""
        return self._complete and (self.winner is not None or not self.alive)

    @property
    def _complete(self) -> bool:
        return len(self._entries) >= max(self._expected, 1)

    # --- events -------------------------------------------------------------------------------------------------

    def expect(self, count: int) -> list[Decision]:
        """Sets the number of candidates: before all have entered, the race neither prunes nor ends."""
        self._expected = count
        self.refit()
        return self._finish()

    def enter(self, key: Hashable) -> None:
        """Adds a candidate unless it is there; after the end of the race it is pruned at once."""
        if key in self._entries:
            return
        late = self.over
        self._entries[key] = Entry(State.PRUNED, "entered after the race was decided") if late else Entry()

    def report(
        self, key: Hashable, samples: float, loss: float, seconds: float = math.nan, learning_rate: float = math.nan
    ) -> list[Decision]:
        """Adds a candidate's loss and learning rate after ``samples`` samples and ``seconds`` of training.

        Ignores reports of pruned candidates, of candidates that have spent the window, and reports that are not ahead
        of the last one (a restarted trial repeats itself). Reports of the winner count from the next ``refit`` on.

        Returns:
            All changes of state that follow, for any candidate.
        """
        entry = self._entries.get(key)
        if entry is None or not entry.alive:
            return []
        if not math.isfinite(loss):
            return self.fail(key, f"loss became {loss} after {samples:,.0f} samples")
        if entry.state is State.WAITING or samples <= (entry.samples or [self.start])[-1]:
            return []
        entry.samples.append(float(samples))
        entry.losses.append(float(loss))
        entry.seconds.append(float(seconds))
        entry.learning_rates.append(float(learning_rate))
        if entry.state is State.WON:
            return []
        self.refit()
        decisions = self._prune()
        if entry.state is State.RACING and self.spent(key) - self._origin >= self.window:
            decisions.append(self._move(key, State.WAITING, f"window of {self.window:,.0f} {self.axis} spent"))
        return decisions + self._finish()

    def measure(self, key: Hashable, throughput: float) -> list[Decision]:
        """Sets a candidate's throughput with the device to itself, in samples per second.

        Raises:
            ValueError: It is not a positive number.
        """
        if not 0 < throughput < math.inf:
            raise ValueError(f"throughput {throughput} of candidate {key!r} is not a positive number")
        entry = self._entries.get(key)
        if entry is None:
            return []
        entry.throughput_alone = float(throughput)
        if not entry.alive or self.winner is not None:
            return []
        self.refit()
        return [*self._prune(), *self._finish()]

    def fail(self, key: Hashable, reason: str) -> list[Decision]:
        """Prunes a candidate that cannot continue. If the winner fails, the race has no winner."""
        entry = self._entries.get(key)
        if entry is None or not entry.alive:
            return []
        entry.failed_from = entry.decided or self._decision(key, {})
        pruned = self._move(key, State.PRUNED, reason)
        if entry.failed_from.state is not State.WON:
            self.refit()
        return [pruned, *self._finish()]

    def complete(self, key: Hashable) -> list[Decision]:
        """Marks a candidate as finished: it reports no more, but its curve stays in the race."""
        entry = self._entries.get(key)
        if entry is None or self.over or entry.state is not State.RACING:
            return []
        if not self._has_loss(key) or (self.rule == "halving" and not entry.samples):
            return self.fail(key, "ended without reporting a loss")
        entry.finished = True
        return [self._move(key, State.WAITING, "finished"), *self._finish()]

    def retry(self, keys: Iterable[Hashable]) -> list[Decision]:
        """Restores the states that failed candidates had before they failed.

        After a race that was decided on losses, only a failed winner is restored. If the winner was only the last
        candidate left and has not spent its window, the race is reopened.

        Returns:
            The state of every restored candidate, and the decisions that follow.
        """
        failed = [key for key in keys if key in self._entries and self._entries[key].failed_from is not None]
        won = [key for key in failed if self._before(key).state is State.WON]
        winner = won[0] if won else self.winner
        reopened = False
        if winner is not None:
            others = [key for key in failed if key != winner]
            reopened = bool(others) and self._by_default and self.spent(winner) - self._origin < self.window
            failed = [*won, *others] if reopened else won
        before = {key: self._before(key) for key in failed}
        for key, decided in before.items():
            entry = self._entries[key]
            entry.state, entry.failed_from = State.RACING if reopened else decided.state, None
            entry.reason = f"{decided.reason}; retried" if decided.reason and not reopened else "retried"
        if reopened and winner not in failed:
            self._entries[winner].state, self._entries[winner].reason = (
                State.RACING,
                "race reopened: others are retried",
            )
            failed.append(winner)
        probabilities = self._probabilities()
        decisions = [self._restored(key, before.get(key), probabilities) for key in failed]
        if not failed or self.winner is not None:
            return decisions
        self._by_default = False
        self.refit()
        return [*decisions, *self._finish()]

    # --- rules --------------------------------------------------------------------------------------------------

    def _prune(self) -> list[Decision]:
        if not self._complete:
            return []
        return self._halve() if self.rule == "halving" else self._prune_unlikely()

    def _halve(self) -> list[Decision]:
        decisions: list[Decision] = []
        while self._halvings and len(self.alive) > 1:
            at = self._origin + self._halvings[0] * self.window
            point, losses = self._observed(at)
            if not point >= at:
                break
            del self._halvings[0]
            probabilities = self._probabilities()
            for key, reason in halved(losses, self._tie_break(losses.values())).items():
                decisions.append(
                    self._move(key, State.PRUNED, f"{self._loss_at(key, losses, point)}: {reason}", probabilities)
                )
        return decisions

    def _loss_at(self, key: Hashable, losses: dict[Hashable, float], point: float) -> str:
        after = f" after {point - self._origin:,.0f} {self.axis}" if math.isfinite(point) else ""
        return f"loss {losses[key]:.3f}{after}"

    def _prune_unlikely(self) -> list[Decision]:
        decisions: list[Decision] = []
        while len(self.alive) > 1 and min(len(self._entries[key].samples) for key in self.alive) >= self.min_reports:
            probabilities = self._probabilities()
            worst = min(probabilities, key=lambda key: probabilities[key], default=None)
            if worst is None or probabilities[worst] >= self.prune_below:
                break
            # Those that are never the best are pruned together: a fit after each of them would take long.
            never = [key for key, chance in probabilities.items() if chance == 0]
            decisions += [
                self._move(key, State.PRUNED, self._unlikely(key, probabilities), probabilities)
                for key in never or [worst]
            ]
        return decisions

    def _unlikely(self, key: Hashable, probabilities: dict[Hashable, float]) -> str:
        reason = f"probability of finishing best is {probabilities[key]:.1%}, below {self.prune_below:.0%}"
        tie_break = self._forecast_ties()
        if tie_break is None or self._probabilities(ties=False).get(key, 0.0) < self.prune_below:
            return reason
        best = max(probabilities, key=lambda other: probabilities[other])
        ratio = tie_break.throughput[best] / tie_break.throughput[key]
        return f"{reason}: {best} is within {tie_break.tolerance:.3f} of it and {ratio:.2f} times as fast"

    def _finish(self) -> list[Decision]:
        alive = self.alive
        if self.over or not self._complete:
            return []
        if len(alive) == 1:
            if not self._has_loss(alive[0]):
                return []  # a winner needs a loss
            self._by_default = bool(self.failed)
            reason = "last candidate left" if len(self._entries) > 1 else "only candidate"
            return [self._move(alive[0], State.WON, reason)]
        if not alive or any(self._entries[key].state is State.RACING for key in alive):
            return []
        if self.rule == "halving":
            point, losses = self._observed()
            lowest = min(losses, key=lambda key: losses[key])
            named = {key: self._loss_at(key, losses, point) for key in alive}
        else:
            losses, likely = {key: self._final_forecast(key).mean for key in alive}, self._probabilities(ties=False)
            lowest = max(alive, key=lambda key: likely.get(key, 0.0))
            named = {key: f"forecast {losses[key]:.3f}" for key in alive}
        tie_break = self._tie_break(losses.values())
        best, won = lowest, f"lowest {named[lowest]}"
        if tie_break is not None:
            known = {key: loss for key, loss in losses.items() if math.isfinite(loss)}
            best = tie_break.best({**known, lowest: min(known.values())})
        if best != lowest and tie_break is not None:
            ratio = tie_break.throughput[best] / tie_break.throughput[lowest]
            lead = f"of the lowest ({lowest}: {losses[lowest]:.3f}), and {ratio:.2f} times as fast"
            won = f"{named[best]} is within {tie_break.tolerance:.3f} {lead}"
        probabilities = self._probabilities()
        decisions = [
            self._move(key, State.PRUNED, f"{named[key]}; the winner: {losses[best]:.3f}", probabilities)
            for key in alive
            if key != best
        ]
        return [*decisions, self._move(best, State.WON, won, probabilities)]

    def _has_loss(self, key: Hashable) -> bool:
        """Returns whether a candidate, or the weights that it forked from, has a finite loss."""
        return bool(self._entries[key].samples) or self.start > 0

    def _move(
        self, key: Hashable, state: State, reason: str, probabilities: dict[Hashable, float] | None = None
    ) -> Decision:
        numbers = probabilities if probabilities is not None else self._probabilities()
        entry = self._entries[key]
        entry.state, entry.reason = state, reason
        path = self._path(key) if state in (State.PRUNED, State.WON) else ()
        entry.decided = replace(self._decision(key, numbers), path=path)
        return entry.decided

    def _restored(self, key: Hashable, before: Decision | None, probabilities: dict[Hashable, float]) -> Decision:
        """Returns the decision on a retried candidate. One that is valid again keeps the numbers it was based on."""
        entry = self._entries[key]
        valid = before is not None and before.state is entry.state and entry.state is not State.RACING
        entry.decided = replace(before, reason=entry.reason) if valid and before else self._decision(key, probabilities)
        return entry.decided
