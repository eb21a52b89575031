"""The states of candidates in a race, and the decisions that change them."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

from schedulers.forecast import Forecast


class State(StrEnum):
    """The state of a candidate in a race."""

    RACING = "racing"  # training
    WAITING = "waiting"  # has spent the window, or has finished; may still win
    PRUNED = "pruned"  # stopped; the reason says why
    WON = "won"


@dataclass(frozen=True)
class Decision:
    """A change of a candidate's state, with the numbers that it is based on.

    Args:
        key: The candidate.
        state: Its new state.
        reason: The reason, for users.
        samples: Samples seen; before the first report, those at which the race started.
        loss: The last loss; nan before the first report.
        forecast: The loss forecast for the end of the budget.
        probability_best: The probability of finishing best.
        log_rate: Mean and standard deviation of the log statistical efficiency; None if the forecaster has none.
        throughput: Samples per second during the race, in which candidates may share a device.
        throughput_alone: Samples per second with the device to itself; nan unless it was measured.
        path: Samples and forecast losses from the decision to the end of the budget, for plots; empty unless the
            candidate was pruned or has won.
    """

    key: Hashable
    state: State
    reason: str
    samples: float
    loss: float
    forecast: Forecast
    probability_best: float
    log_rate: tuple[float, float] | None
    throughput: float
    throughput_alone: float = math.nan
    path: tuple[tuple[float, Forecast], ...] = ()

    @property
    def measured_throughput(self) -> float:
        """The throughput alone if it was measured, else that of the race."""
        return self.throughput_alone if math.isfinite(self.throughput_alone) else self.throughput
