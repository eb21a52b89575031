"""Forecasters that extrapolate the loss curves of candidates."""

from typing import Protocol

from schedulers.forecast.base import Forecast, Forecaster, TieBreak
from schedulers.forecast.joint import JointForecaster
from schedulers.forecast.last_value import LastValueForecaster
from schedulers.forecast.per_curve import PerCurveForecaster


class ForecasterType(Protocol):
    """Creates a forecaster.

    Args:
        head_start: Samples seen before the curves start.
        averaged: Whether the losses are those of averaged weights.
    """

    def __call__(self, head_start: float = 0.0, *, averaged: bool = True) -> Forecaster: ...


#: Forecasters by name.
FORECASTERS: dict[str, ForecasterType] = {
    "joint": JointForecaster,
    "per_curve": PerCurveForecaster,
    "last_value": LastValueForecaster,
}

__all__ = [
    "FORECASTERS",
    "Forecast",
    "Forecaster",
    "JointForecaster",
    "LastValueForecaster",
    "PerCurveForecaster",
    "TieBreak",
]
