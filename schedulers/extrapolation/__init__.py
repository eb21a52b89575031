"""Three ways to extrapolate the loss curves of candidates, behind one interface."""

from collections.abc import Callable

from schedulers.extrapolation.base import Forecast, Forecaster
from schedulers.extrapolation.joint import JointForecaster
from schedulers.extrapolation.last_value import LastValueForecaster
from schedulers.extrapolation.per_curve import PerCurveForecaster

#: The forecasters by the name that settings use.
PREDICTORS: dict[str, Callable[[], Forecaster]] = {
    "joint": JointForecaster,
    "per_curve": PerCurveForecaster,
    "last_value": LastValueForecaster,
}

__all__ = [
    "PREDICTORS",
    "Forecast",
    "Forecaster",
    "JointForecaster",
    "LastValueForecaster",
    "PerCurveForecaster",
]
