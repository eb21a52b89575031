from __future__ import annotations

import math

import pytest

from schedulers import Forecast
from schedulers.forecast.deviation import Deviation


def expecting(mean: float, std: float, **settings: float) -> Deviation:
    deviation = Deviation(**settings)  # type: ignore[arg-type]
    deviation.expect(lambda samples: Forecast(mean, std))
    return deviation


def test_loss_below_forecast_is_a_positive_deviation() -> None:
    assert expecting(2.0, 0.5).report(100, 1.0) == 2.0
    assert expecting(2.0, 0.5).report(100, 2.25) == -0.5


def test_no_deviation_without_a_forecast() -> None:
    deviation = Deviation()
    assert math.isnan(deviation.report(100, 1.0))
    assert deviation.forecast_at(100) is None
    assert not deviation.settled
    assert math.isnan(deviation.mean)


def test_underperforms_after_consecutive_bad_reports() -> None:
    deviation = expecting(2.0, 0.1, patience=3)
    for loss in (2.5, 2.5, 2.0, 2.5, 2.5):
        deviation.report(100, loss)
        assert not deviation.underperformed
    deviation.report(100, 2.5)
    assert deviation.underperformed
    assert deviation.mean == pytest.approx(-5)


def test_new_forecast_clears_earlier_deviations() -> None:
    deviation = expecting(2.0, 0.1, patience=2)
    deviation.report(100, 3.0)
    deviation.report(200, 3.0)
    deviation.expect(lambda samples: Forecast(3.0, 0.1))
    assert not deviation.underperformed
    assert not deviation.settled


def test_nan_loss_is_ignored() -> None:
    deviation = expecting(2.0, 0.1, patience=1)
    assert math.isnan(deviation.report(100, math.nan))
    assert not deviation.settled


@pytest.mark.parametrize("settings", [{"patience": 0}, {"threshold": -1.0}, {"threshold": math.nan}])
def test_rejects_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Deviation(**settings)  # type: ignore[arg-type]
