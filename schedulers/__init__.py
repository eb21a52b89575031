"""Candidates, forecasters, races, and a Ray Tune scheduler that chooses the batch size.

Only ``LossExtrapolationScheduler`` needs Ray, which is imported when that name is first used; all others need numpy.
"""

from typing import TYPE_CHECKING, Any

from schedulers.candidate import Candidate
from schedulers.decision import Decision, State
from schedulers.forecast import (
    FORECASTERS,
    Forecast,
    Forecaster,
    JointForecaster,
    LastValueForecaster,
    PerCurveForecaster,
)
from schedulers.in_run.rotate import Rotation
from schedulers.in_run.swap import SwapOnDeviation
from schedulers.race import Race

if TYPE_CHECKING:
    from schedulers.tune.scheduler import LossExtrapolationScheduler

__all__ = [
    "FORECASTERS",
    "Candidate",
    "Decision",
    "Forecast",
    "Forecaster",
    "JointForecaster",
    "LastValueForecaster",
    "LossExtrapolationScheduler",
    "PerCurveForecaster",
    "Race",
    "Rotation",
    "State",
    "SwapOnDeviation",
]


def __getattr__(name: str) -> Any:
    if name == "LossExtrapolationScheduler":
        from schedulers.tune.scheduler import LossExtrapolationScheduler

        return LossExtrapolationScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
