"""The baseline forecaster: the last loss."""

from __future__ import annotations

from collections.abc import Hashable

from schedulers.forecast.base import Array, Curves, Ends, Forecast, Forecaster, LearningRates, clean, last_value


class LastValueForecaster(Forecaster):
    """Forecasts the last loss of each curve."""

    def __init__(self, head_start: float = 0.0, *, averaged: bool = True) -> None:
        del head_start, averaged  # the last loss does not depend on them
        self._curves: dict[Hashable, tuple[Array, Array]] = {}

    def fit(self, curves: Curves, ends: Ends | None = None, learning_rates: LearningRates | None = None) -> None:
        self._curves = clean(curves)

    def forecast(self, key: Hashable, at: float) -> Forecast:
        return last_value(*self._curves[key], at)
