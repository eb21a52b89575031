"""Three ways to extrapolate the loss curves of candidates, behind one interface."""

from typing import Protocol

from schedulers.forecast.base import Forecast, Forecaster
from schedulers.forecast.joint import JointForecaster
from schedulers.forecast.last_value import LastValueForecaster
from schedulers.forecast.per_curve import PerCurveForecaster


class Predictor(Protocol):
    """Makes a forecaster; ``head_start``: samples seen before the curves' samples count from zero."""

    def __call__(self, head_start: float = 0.0) -> Forecaster: ...


#: The forecasters by the name that settings use.
PREDICTORS: dict[str, Predictor] = {
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
