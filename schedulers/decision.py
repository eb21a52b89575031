"""What a race decides, and the numbers it was decided on."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

from schedulers.forecast import Forecast


class State(StrEnum):
    """Where a candidate stands in its race."""

    RACING = "racing"  # trains
    WAITING = "waiting"  # has spent its window, and waits for the others
    PRUNED = "pruned"  # out; its reason says why
    WON = "won"


@dataclass(frozen=True)
class Decision:
    """A change of one candidate's state, with the numbers it was taken on.

    Args:
        key: The candidate.
        state: Its new state.
        reason: Why, in words.
        samples: Samples it has seen; before its first report, those that all candidates started from.
        loss: Its last loss (nan before the first).
        forecast: Its expected loss at the end of the budget.
        probability_best: The probability that it ends lowest.
        log_rate: The logarithm of its progress rate, and the standard deviation (None: the forecaster has no rates).
        throughput: Samples per second.
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
