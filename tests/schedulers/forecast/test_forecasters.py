import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schedulers import FORECASTERS, JointForecaster, LastValueForecaster, PerCurveForecaster
from tests.schedulers.curves import loss_curve, shared_curve

RATES = {"a": 0.6, "b": 0.9, "c": 1.2, "d": 1.6}
BUDGET = 100_000.0


def fitted(forecaster, curves):  # type: ignore[no-untyped-def]
    forecaster.fit(curves)
    return forecaster


def relative(rates: dict[str, float]) -> dict[str, float]:
    mean = np.mean([math.log(rate) for rate in rates.values()])
    return {key: math.log(rate) - float(mean) for key, rate in rates.items()}


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_joint_recovers_efficiencies_early(fraction: float) -> None:
    curves = {
        key: loss_curve(rate, fraction * BUDGET, noise=0.01, seed=seed)
        for seed, (key, rate) in enumerate(RATES.items())
    }
    joint = fitted(JointForecaster(), curves)
    for key, expected in relative(RATES).items():
        log_rate, std = joint.rates()[key]
        assert log_rate == pytest.approx(expected, abs=0.05)
        assert 0 < std < 0.1
    forecasts = [joint.forecast(key, BUDGET).mean for key in RATES]
    assert forecasts == sorted(forecasts, reverse=True)
    assert max(joint.probability_best(dict.fromkeys(RATES, BUDGET)), key=lambda k: RATES[k]) == "d"


def test_joint_interval_covers_the_final_loss() -> None:
    curves = {key: loss_curve(rate, 0.3 * BUDGET, noise=0.01, seed=7) for key, rate in RATES.items()}
    joint = fitted(JointForecaster(), curves)
    for key, rate in RATES.items():
        forecast = joint.forecast(key, BUDGET)
        assert abs(forecast.mean - float(shared_curve(np.array(rate * BUDGET)))) < 2 * forecast.std < 1.0


def test_joint_does_not_prefer_the_steepest_curve() -> None:
    # The slow candidate is still on the steep part of the shared curve.
    curves = {"slow": loss_curve(0.25, 8_000), "fast": loss_curve(4.0, 8_000)}
    slopes = {key: (loss[-4] - loss[-1]) for key, (_, loss) in curves.items()}
    assert slopes["slow"] > slopes["fast"]
    joint = fitted(JointForecaster(), curves)
    assert joint.forecast("fast", BUDGET).mean < joint.forecast("slow", BUDGET).mean
    assert joint.probability_best({"slow": BUDGET, "fast": BUDGET})["fast"] > 0.95


@st.composite
def races(draw):  # type: ignore[no-untyped-def]
    """Curves of two to five candidates on one grid, with efficiencies within a factor of four and noise of up to 5 %.

    Shorter curves or curves without noise have several minima, between which rounding decides.
    """
    keys = "abcde"[: draw(st.integers(2, 5))]
    until, points = draw(st.floats(2_000, BUDGET)), draw(st.integers(6, 50))
    noise, seed = draw(st.floats(0.005, 0.05)), draw(st.integers(0, 1000))
    rates = {key: draw(st.floats(0.5, 2.0)) for key in keys}
    return {key: loss_curve(rates[key], until, points, noise, seed + 17 * i) for i, key in enumerate(keys)}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(curves=races(), factor=st.floats(1.1, 3.0))
def test_scaled_samples_shift_the_log_efficiency(curves, factor: float) -> None:  # type: ignore[no-untyped-def]
    samples, losses = curves["a"]
    joint = fitted(JointForecaster(), {"one": (samples, losses), "faster": (samples / factor, losses)})
    (one, std), (faster, _) = joint.rates()["one"], joint.rates()["faster"]
    assert faster - one == pytest.approx(math.log(factor), abs=0.03 + 2 * std)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(curves=races())
def test_identical_curves_have_identical_results(curves) -> None:  # type: ignore[no-untyped-def]
    joint = fitted(JointForecaster(), {**curves, "twin": curves["a"]})
    assert joint.rates()["twin"][0] == pytest.approx(joint.rates()["a"][0], abs=1e-4)
    assert joint.forecast("twin", BUDGET).mean == pytest.approx(joint.forecast("a", BUDGET).mean, abs=1e-3)
    probabilities = joint.probability_best(dict.fromkeys(joint.rates(), BUDGET))
    assert probabilities["twin"] == pytest.approx(probabilities["a"], abs=0.06)  # 2,048 draws


@settings(max_examples=60, deadline=None, derandomize=True)
@given(curves=races(), unit=st.sampled_from([1e-3, 1.0 / 256, 2.0, 1e4]))
def test_independent_of_order_and_unit(curves, unit: float) -> None:  # type: ignore[no-untyped-def]
    plain = fitted(JointForecaster(), curves)
    backwards = fitted(JointForecaster(), dict(reversed(curves.items())))
    scaled = fitted(JointForecaster(), {key: (s * unit, y) for key, (s, y) in curves.items()})
    for key in curves:
        forecast = plain.forecast(key, BUDGET)
        # Rounding may end the search a step earlier or later.
        for other in (backwards.forecast(key, BUDGET), scaled.forecast(key, unit * BUDGET)):
            assert abs(other.mean - forecast.mean) < 0.5 * forecast.std
        for other_rate, _ in (backwards.rates()[key], scaled.rates()[key]):
            assert other_rate == pytest.approx(plain.rates()[key][0], abs=0.02)


def test_robust_to_outliers() -> None:
    curves = {key: loss_curve(rate, 20_000, noise=0.01, seed=5) for key, rate in RATES.items()}
    curves["d"][1][10] += 3.0
    probabilities = fitted(JointForecaster(), curves).probability_best(dict.fromkeys(RATES, BUDGET))
    assert max(probabilities, key=lambda key: probabilities[key]) == "d"


def test_last_value_is_less_certain_further_ahead() -> None:
    last = fitted(LastValueForecaster(), {"a": loss_curve(1.0, 20_000, noise=0.01)})
    near, far = last.forecast("a", 21_000), last.forecast("a", BUDGET)
    assert near.mean == far.mean == loss_curve(1.0, 20_000, noise=0.01)[1][-1]
    assert far.std > near.std


def test_per_curve_is_independent_of_other_curves() -> None:
    curve = loss_curve(1.0, 20_000, noise=0.01)
    alone = fitted(PerCurveForecaster(), {"a": curve}).forecast("a", BUDGET)
    beside = fitted(PerCurveForecaster(), {"a": curve, "b": loss_curve(3.0, 20_000)}).forecast("a", BUDGET)
    assert alone == beside


@pytest.mark.parametrize("name", FORECASTERS)
def test_short_curves_give_the_last_value(name: str) -> None:
    forecaster = fitted(FORECASTERS[name](), {"short": ([1, 2], [5.0, 4.0]), "empty": ([], [])})
    assert forecaster.forecast("short", 100).mean == 4.0
    assert forecaster.forecast("short", 100).std >= 4.0
    assert math.isnan(forecaster.forecast("empty", 100).mean)
    with pytest.raises(KeyError):
        forecaster.forecast("unknown", 100)


ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize("name", FORECASTERS)
@settings(max_examples=60, deadline=None)
@given(
    curves=st.dictionaries(
        st.sampled_from("abc"),
        st.lists(st.tuples(st.floats(0, 1e9) | ANY_FLOAT, ANY_FLOAT), max_size=12),
        min_size=1,
    )
)
@example(curves={"a": [(1.2392514401631909e-306, 0.0)] * 3})
def test_never_raises(name: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    forecaster = FORECASTERS[name]()
    with np.errstate(all="ignore"):
        forecaster.fit({key: ([s for s, _ in points], [y for _, y in points]) for key, points in curves.items()})
        for key in curves:
            forecast = forecaster.forecast(key, 1e6)
            assert math.isnan(forecast.std) is False
        probabilities = forecaster.probability_best(dict.fromkeys(curves, 1e6))
    assert sum(probabilities.values()) == pytest.approx(1)
