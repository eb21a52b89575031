"""(+) or (-): what happens, compared with what was forecast at the last decision."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from schedulers.forecast import Forecast

#: So many reports in a row make a deviation.
PATIENCE = 4
#: How far they must lie above the forecast, in its standard deviations.
THRESHOLD = 1.0


@dataclass
class Deviation:
    """Keeps a forecast and measures how far each report lies from it.

        deviation = (forecast - actual) / std

    Positive, (+): the loss is lower than forecast. One bad report is noise; only when the last ``patience`` reports
    all lie more than ``threshold`` standard deviations above their forecasts is the run *underperforming*.

    Args:
        patience: Reports that must underperform one after the other, at least 1.
        threshold: How far a report must lie above its forecast to underperform, in standard deviations, at least 0.

    Raises:
        ValueError: A number is out of its range.
    """

    patience: int = PATIENCE
    threshold: float = THRESHOLD
    _forecast: Callable[[float], Forecast] | None = None
    _recent: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience {self.patience} is below 1")
        if not (self.threshold >= 0 and math.isfinite(self.threshold)):
            raise ValueError(f"threshold {self.threshold} is no number of standard deviations of at least 0")

    def expect(self, forecast: Callable[[float], Forecast]) -> None:
        """Takes the forecast that a decision was made on, as a function of samples; what was before is forgotten."""
        self._forecast, self._recent = forecast, deque(maxlen=self.patience)

    def forecast_at(self, samples: float) -> Forecast | None:
        """What is expected there; None before any forecast."""
        return self._forecast(samples) if self._forecast is not None else None

    def report(self, samples: float, loss: float) -> float:
        """The deviation of one report, in standard deviations; nan before any forecast, and for a loss of nan."""
        forecast = self.forecast_at(samples)
        if forecast is None:
            return math.nan
        deviation = (forecast.mean - loss) / max(forecast.std, 1e-12)
        if math.isfinite(deviation):
            self._recent.append(deviation)
        return deviation

    @property
    def underperformed(self) -> bool:
        """Whether the last ``patience`` reports all were (-)."""
        return len(self._recent) == self.patience and max(self._recent) < -self.threshold

    @property
    def settled(self) -> bool:
        """Whether ``patience`` reports have been compared since the forecast was made."""
        return len(self._recent) == self.patience

    @property
    def mean(self) -> float:
        """Of the last ``patience`` deviations; nan before any."""
        return sum(self._recent) / len(self._recent) if self._recent else math.nan
