"""When the candidates race again, on the way to the end of the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: ``"never"``, ``"on_deviation"``, or ``{"at": [0.1, 0.3]}``: shares of the budget.
Rerace = str | Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class ReracePlan:
    """When further races may begin. All numbers are in units of the budget: samples or seconds.

    Args:
        window: What a candidate may spend in each further race.
        budget: The whole run.
        points: Where further races begin; empty: nowhere.
        on_deviation: They begin when the winner does worse than forecast instead.
    """

    window: float
    budget: float
    points: tuple[float, ...] = ()
    on_deviation: bool = False

    @classmethod
    def of(cls, rerace: Rerace, *, window: float, rerace_window: float | None, budget: float) -> ReracePlan:
        """Reads the setting.

        Args:
            rerace: See ``Rerace``.
            window: Of the first race.
            rerace_window: Of the further ones; None: the same.
            budget: The whole run.

        Raises:
            ValueError: The setting is unknown, or the races would overlap or not fit into the budget.
        """
        again = window if rerace_window is None else rerace_window
        if rerace == "never" and rerace_window is None:
            return cls(again, budget)
        if not 0 < again < budget:
            raise ValueError(f"rerace_window {again:,} does not fit into a budget of {budget:,}: it must be in between")
        if rerace in ("never", "on_deviation"):
            return cls(again, budget, on_deviation=rerace == "on_deviation")
        if not isinstance(rerace, Mapping) or set(rerace) != {"at"}:
            raise ValueError(f"rerace {rerace!r} is unknown: use 'never', 'on_deviation' or {{'at': [0.1, 0.3]}}")
        shares = list(rerace["at"])
        if not shares or not all(isinstance(share, int | float) and 0 < share < 1 for share in shares):
            raise ValueError(f"rerace at {shares} is no list of shares of the budget in (0, 1)")
        before, needed = 0.0, window / budget
        for share in shares:
            if share < before + needed - 1e-9:
                raise ValueError(
                    f"rerace at {share:g} begins before the race at {before:g} ends at {before + needed:g}: "
                    "let the shares rise, and leave each race its window"
                )
            before, needed = share, again / budget
        if before + needed > 1 + 1e-9:
            raise ValueError(f"rerace at {before:g} leaves less than rerace_window {again:,} of the budget {budget:,}")
        return cls(again, budget, tuple(share * budget for share in shares))

    def next(self, spent: float, races: int) -> float:
        """The earliest point at which another race may begin; inf: nowhere.

        Args:
            spent: What the winner has spent.
            races: How many further races there have been.
        """
        if self.on_deviation:
            point = spent
        elif races < len(self.points):
            point = max(spent, self.points[races])
        else:
            return math.inf
        return point if point + self.window <= self.budget * (1 + 1e-9) else math.inf
