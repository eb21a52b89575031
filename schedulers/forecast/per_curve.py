"""Each curve on its own: a power law per candidate, nothing shared."""

from __future__ import annotations

from collections.abc import Hashable

from schedulers.forecast.base import Curves, Ends, Forecast, Forecaster
from schedulers.forecast.joint import JointForecaster


class PerCurveForecaster(Forecaster):
    """Fits ``g(s) = a + b (s + t0)^-c`` to every curve alone.

    The usual way to extrapolate learning curves (Domhan et al., IJCAI 2015). It is kept for comparison: early in a
    run the steepest curve is forecast to end lowest, and a large batch's is the steepest.
    """

    def __init__(self, head_start: float = 0.0) -> None:
        self._head_start = head_start
        self._fits: dict[Hashable, JointForecaster] = {}

    def fit(self, curves: Curves, ends: Ends | None = None) -> None:
        self._fits = {}
        for key, curve in curves.items():
            self._fits[key] = JointForecaster(self._head_start)
            self._fits[key].fit({key: curve}, ends)

    def forecast(self, key: Hashable, at: float) -> Forecast:
        return self._fits[key].forecast(key, at)
