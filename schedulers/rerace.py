"""The setting that says when further races start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: ``"never"``, ``"on_deviation"``, or ``{"at": [0.1, 0.3]}``: fractions of the budget.
Rerace = str | Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class ReracePlan:
    """Says when further races start. All numbers are in units of the budget: samples or seconds."""

    window: float  # of each further race
    budget: float  # length of the whole run
    points: tuple[float, ...] = ()  # of the budget, at which further races start
    on_deviation: bool = False  # whether they start when the winner underperforms instead

    @classmethod
    def of(cls, rerace: Rerace, *, window: float, rerace_window: float | None, budget: float) -> ReracePlan:
        """Parses the setting. ``window`` is that of the first race, ``rerace_window`` of further ones; None: the same.

        Raises:
            ValueError: The setting is unknown, or the races would overlap or not fit into the budget.
        """
        again = window if rerace_window is None else rerace_window
        if rerace == "never" and rerace_window is None:
            return cls(again, budget)
        if not 0 < again < budget:
            raise ValueError(f"rerace_window {again:,} does not fit into a budget of {budget:,}: use (0, budget)")
        if rerace in ("never", "on_deviation"):
            return cls(again, budget, on_deviation=rerace == "on_deviation")
        if not isinstance(rerace, Mapping) or set(rerace) != {"at"}:
            raise ValueError(f"rerace {rerace!r} is unknown: use 'never', 'on_deviation' or {{'at': [0.1, 0.3]}}")
        fractions = list(rerace["at"])
        if not fractions or not all(isinstance(fraction, int | float) and 0 < fraction < 1 for fraction in fractions):
            raise ValueError(f"rerace at {fractions} is not a list of fractions of the budget in (0, 1)")
        before, needed = 0.0, window / budget
        for fraction in fractions:
            if fraction < before + needed - 1e-9:
                raise ValueError(
                    f"rerace at {fraction:g} starts before the race at {before:g} ends at {before + needed:g}: "
                    "give increasing fractions with room for a window between them"
                )
            before, needed = fraction, again / budget
        if before + needed > 1 + 1e-9:
            raise ValueError(f"rerace at {before:g} leaves less than rerace_window {again:,} of the budget {budget:,}")
        return cls(again, budget, tuple(fraction * budget for fraction in fractions))

    def next(self, spent: float, races: int) -> float:
        """Returns the earliest point at which another race may start after ``races`` further ones; inf if none may.

        ``spent`` is the part of the budget that the winner has spent.
        """
        if self.on_deviation:
            point = spent
        elif races < len(self.points):
            point = max(spent, self.points[races])
        else:
            return math.inf
        return point if point + self.window <= self.budget * (1 + 1e-9) else math.inf
