import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers import PREDICTORS, JointForecaster, LastValueForecaster, PerCurveForecaster
from tests.schedulers.curves import shared_curve, walk

RATES = {"a": 0.6, "b": 0.9, "c": 1.2, "d": 1.6}
BUDGET = 100_000.0


def fitted(forecaster, curves):  # type: ignore[no-untyped-def]
    forecaster.fit(curves)
    return forecaster


def relative(rates: dict[str, float]) -> dict[str, float]:
    mean = np.mean([math.log(rate) for rate in rates.values()])
    return {key: math.log(rate) - float(mean) for key, rate in rates.items()}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_joint_recovers_rates_and_order_early(share: float) -> None:
    curves = {key: walk(rate, share * BUDGET, noise=0.01, seed=seed) for seed, (key, rate) in enumerate(RATES.items())}
    joint = fitted(JointForecaster(), curves)
    for key, expected in relative(RATES).items():
        log_rate, std = joint.rates()[key]
        assert log_rate == pytest.approx(expected, abs=0.05)
        assert 0 < std < 0.1
    forecasts = [joint.forecast(key, BUDGET).mean for key in RATES]
    assert forecasts == sorted(forecasts, reverse=True)
    assert max(joint.probability_best(dict.fromkeys(RATES, BUDGET)), key=lambda k: RATES[k]) == "d"


def test_joint_forecast_lies_within_its_interval_around_the_truth() -> None:
    curves = {key: walk(rate, 0.3 * BUDGET, noise=0.01, seed=7) for key, rate in RATES.items()}
    joint = fitted(JointForecaster(), curves)
    for key, rate in RATES.items():
        forecast = joint.forecast(key, BUDGET)
        assert abs(forecast.mean - float(shared_curve(np.array(rate * BUDGET)))) < 2 * forecast.std < 1.0


def test_fitting_each_curve_alone_prefers_the_steepest_where_the_joint_fit_does_not() -> None:
    # The slow walker is still on the steep part of the shared curve; the fast one has left it behind.
    curves = {"slow": walk(0.25, 8_000), "fast": walk(4.0, 8_000)}
    slopes = {key: (loss[-4] - loss[-1]) for key, (_, loss) in curves.items()}
    assert slopes["slow"] > slopes["fast"]
    joint = fitted(JointForecaster(), curves)
    assert joint.forecast("fast", BUDGET).mean < joint.forecast("slow", BUDGET).mean
    assert joint.probability_best({"slow": BUDGET, "fast": BUDGET})["fast"] > 0.95


def test_a_curve_sped_up_by_a_factor_gains_its_logarithm() -> None:
    samples, losses = walk(1.0, 20_000)
    joint = fitted(JointForecaster(), {"one": (samples, losses), "double": (samples / 2, losses)})
    (one, _), (double, _) = joint.rates()["one"], joint.rates()["double"]
    assert double - one == pytest.approx(math.log(2), abs=0.02)


def test_identical_curves_have_identical_rates_and_chances() -> None:
    curve = walk(1.0, 20_000, noise=0.02)
    joint = fitted(JointForecaster(), {"one": curve, "two": curve})
    assert joint.rates()["one"][0] == pytest.approx(0, abs=1e-6)
    chances = joint.probability_best({"one": BUDGET, "two": BUDGET})
    assert chances["one"] == pytest.approx(0.5, abs=0.05)


def test_order_of_candidates_and_unit_of_samples_do_not_matter() -> None:
    curves = {key: walk(rate, 20_000, noise=0.02, seed=3) for key, rate in RATES.items()}
    plain = fitted(JointForecaster(), curves)
    backwards = fitted(JointForecaster(), dict(reversed(curves.items())))
    scaled = fitted(JointForecaster(), {key: (s * 1000, y) for key, (s, y) in curves.items()})
    for key in RATES:
        assert backwards.forecast(key, BUDGET).mean == pytest.approx(plain.forecast(key, BUDGET).mean, abs=2e-2)
        assert scaled.forecast(key, 1000 * BUDGET).mean == pytest.approx(plain.forecast(key, BUDGET).mean, abs=1e-6)


def test_an_outlier_does_not_turn_the_order() -> None:
    curves = {key: walk(rate, 20_000, noise=0.01, seed=5) for key, rate in RATES.items()}
    curves["d"][1][10] += 3.0
    chances = fitted(JointForecaster(), curves).probability_best(dict.fromkeys(RATES, BUDGET))
    assert max(chances, key=lambda key: chances[key]) == "d"


def test_last_value_says_what_was_last_and_is_less_sure_further_on() -> None:
    last = fitted(LastValueForecaster(), {"a": walk(1.0, 20_000, noise=0.01)})
    near, far = last.forecast("a", 21_000), last.forecast("a", BUDGET)
    assert near.mean == far.mean == walk(1.0, 20_000, noise=0.01)[1][-1]
    assert far.std > near.std


def test_per_curve_does_not_look_at_the_others() -> None:
    curve = walk(1.0, 20_000, noise=0.01)
    alone = fitted(PerCurveForecaster(), {"a": curve}).forecast("a", BUDGET)
    beside = fitted(PerCurveForecaster(), {"a": curve, "b": walk(3.0, 20_000)}).forecast("a", BUDGET)
    assert alone == beside


@pytest.mark.parametrize("name", PREDICTORS)
def test_too_few_points_give_the_last_value_with_a_wide_deviation(name: str) -> None:
    forecaster = fitted(PREDICTORS[name](), {"short": ([1, 2], [5.0, 4.0]), "empty": ([], [])})
    assert forecaster.forecast("short", 100).mean == 4.0
    assert forecaster.forecast("short", 100).std >= 4.0
    assert math.isnan(forecaster.forecast("empty", 100).mean)
    with pytest.raises(KeyError):
        forecaster.forecast("unknown", 100)


ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize("name", PREDICTORS)
@settings(max_examples=60, deadline=None)
@given(
    curves=st.dictionaries(
        st.sampled_from("abc"),
        st.lists(st.tuples(st.floats(0, 1e9) | ANY_FLOAT, ANY_FLOAT), max_size=12),
        min_size=1,
    )
)
def test_never_raises_on_anything_reported(name: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    forecaster = PREDICTORS[name]()
    with np.errstate(all="ignore"):
        forecaster.fit({key: ([s for s, _ in points], [y for _, y in points]) for key, points in curves.items()})
        for key in curves:
            forecast = forecaster.forecast(key, 1e6)
            assert math.isnan(forecast.std) is False
        chances = forecaster.probability_best(dict.fromkeys(curves, 1e6))
    assert sum(chances.values()) == pytest.approx(1)
