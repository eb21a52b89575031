"""A power law for each curve, fitted independently."""

from __future__ import annotations

from collections.abc import Hashable

from schedulers.forecast.base import Curves, Ends, Forecast, Forecaster, LearningRates
from schedulers.forecast.joint import JointForecaster


class PerCurveForecaster(Forecaster):
    """Fits ``g(s) = a + b (s + t0)^-c`` to every curve independently.

    The usual way to extrapolate learning curves (Domhan et al., IJCAI 2015), kept for comparison. Early in a run it
    favors the steepest curve, which is that of a large batch size.
    """

    def __init__(self, head_start: float = 0.0, *, averaged: bool = True) -> None:
        self._head_start, self._averaged = head_start, averaged
        self._fits: dict[Hashable, JointForecaster] = {}

    def fit(self, curves: Curves, ends: Ends | None = None, learning_rates: LearningRates | None = None) -> None:
        self._fits = {}
        for key, curve in curves.items():
            self._fits[key] = JointForecaster(self._head_start, averaged=self._averaged)
            self._fits[key].fit({key: curve}, ends, learning_rates)

    def forecast(self, key: Hashable, at: float) -> Forecast:
        return self._fits[key].forecast(key, at)
