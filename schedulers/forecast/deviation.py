"""The forecast deviation: losses compared with the forecast of the last decision."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from schedulers.forecast import Forecast

#: Consecutive losses above the forecast that make a run underperform.
PATIENCE = 4
#: How far above, in standard deviations of the forecast.
THRESHOLD = 1.0


@dataclass
class Deviation:
    """Computes the z-scores of losses relative to a forecast.

        deviation = (forecast - loss) / std

    A positive deviation means that the loss is lower than forecast. A run *underperforms* when the last ``patience``
    losses are all more than ``threshold`` standard deviations above their forecasts; a single one may be noise.

    Args:
        patience: Number of consecutive losses, at least 1.
        threshold: Standard deviations above the forecast, at least 0.

    Raises:
        ValueError: A number is out of range.
    """

    patience: int = PATIENCE
    threshold: float = THRESHOLD
    _forecast: Callable[[float], Forecast] | None = None
    _recent: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience {self.patience} is below 1")
        if not (self.threshold >= 0 and math.isfinite(self.threshold)):
            raise ValueError(f"threshold {self.threshold} must be a finite number of standard deviations, at least 0")

    def expect(self, forecast: Callable[[float], Forecast]) -> None:
        """Sets the forecast as a function of samples, and clears the earlier deviations."""
        self._forecast, self._recent = forecast, deque(maxlen=self.patience)

    def forecast_at(self, samples: float) -> Forecast | None:
        """Returns the forecast at ``samples``; None without a forecast."""
        return self._forecast(samples) if self._forecast is not None else None

    def report(self, samples: float, loss: float) -> float:
        """Returns the deviation of a loss; nan without a forecast."""
        forecast = self.forecast_at(samples)
        if forecast is None:
            return math.nan
        deviation = (forecast.mean - loss) / max(forecast.std, 1e-12)
        if math.isfinite(deviation):
            self._recent.append(deviation)
        return deviation

    @property
    def underperformed(self) -> bool:
        """Whether the last ``patience`` losses were all above the forecast by more than ``threshold``."""
        return len(self._recent) == self.patience and max(self._recent) < -self.threshold

    @property
    def settled(self) -> bool:
        """Whether ``patience`` losses have been compared with the current forecast."""
        return len(self._recent) == self.patience

    @property
    def mean(self) -> float:
        """Mean of the last ``patience`` deviations; nan without any."""
        return sum(self._recent) / len(self._recent) if self._recent else math.nan
