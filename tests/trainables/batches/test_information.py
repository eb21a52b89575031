"""Tests when accumulated batches make an update, and their weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainables.batches import InformationAccumulator
from trainables.settings import InformationSettings


def settings(**chosen: Any) -> InformationSettings:
    return InformationSettings.model_validate({"until": "information", "alpha": 2.0, **chosen})


class TestAccumulator:
    @pytest.mark.parametrize(
        "scores", [[0.2, 0.25, 0.2, 0.35], [0.3, 0.35, 0.3]], ids=["after the fourth", "after the third"]
    )
    @pytest.mark.parametrize("alpha", [1.0, 3.0])
    def test_updates_when_the_scores_reach_alpha(self, scores: list[float], alpha: float) -> None:
        accumulator = InformationAccumulator(alpha)
        for _ in range(2):  # and starts from zero again
            complete = [accumulator.add(alpha * score) for score in scores]
            assert complete == [False] * (len(scores) - 1) + [True]
            np.testing.assert_allclose(accumulator.weights, np.array(scores) / sum(scores))
            assert accumulator.weights.sum() == pytest.approx(1.0, abs=1e-12)

    def test_zero_tolerance_needs_all_of_alpha(self) -> None:
        accumulator = InformationAccumulator(1.0, tolerance=0.0)
        assert [accumulator.add(score) for score in (0.3, 0.35, 0.3, 0.05)] == [False, False, False, True]

    def test_rounding_does_not_cost_a_batch(self) -> None:
        accumulator = InformationAccumulator(1.0, tolerance=0.0)
        assert [accumulator.add(0.1) for _ in range(10)] == [False] * 9 + [True]  # 0.1 ten times is 0.9999999999999999

    def test_batches_with_zero_scores_have_equal_weights(self) -> None:
        accumulator = InformationAccumulator(1.0)
        assert not accumulator.weights.size
        accumulator.add(0.0)
        accumulator.add(0.0)
        assert accumulator.weights.tolist() == [0.5, 0.5]

    @given(st.floats(0.1, 5), st.lists(st.floats(0, 1), min_size=1, max_size=60))
    def test_updates_reach_alpha_and_weights_sum_to_one(self, alpha: float, scores: list[float]) -> None:
        accumulator, pending = InformationAccumulator(alpha), 0.0
        for score in scores:
            pending += score
            updated = accumulator.add(score)
            assert updated == (pending >= 0.95 * alpha) or math.isclose(pending, 0.95 * alpha, rel_tol=1e-6)
            assert accumulator.weights.sum() == pytest.approx(1.0)
            pending = 0.0 if updated else pending

    @pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf])
    def test_alpha_is_above_0(self, alpha: float) -> None:
        with pytest.raises(ValueError, match="must be above 0"):
            InformationAccumulator(alpha)

    @pytest.mark.parametrize("tolerance", [-0.1, 1.0])
    def test_tolerance_must_be_in_range(self, tolerance: float) -> None:
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            InformationAccumulator(1.0, tolerance)

    @pytest.mark.parametrize("score", [-0.1, math.nan, math.inf])
    def test_scores_must_be_finite(self, score: float) -> None:
        with pytest.raises(ValueError, match="not negative"):
            InformationAccumulator(1.0).add(score)


class TestSettings:
    @pytest.mark.parametrize(
        ("chosen", "complaint"),
        [
            ({"alpha": 0}, "must be above 0"),
            ({"alpha": -2}, "must be above 0"),
            ({"alpha": 70}, "is never reached.*allow at least 67"),
            ({"alpha": 3, "max_micro_batches": 2}, "is never reached.*allow at least 3"),
            ({"alpha": "auto"}, "needs images_per_update"),
            ({"alpha": 2, "images_per_update": 64}, "needs alpha: auto"),
            ({"tolerance": 1}, "less than 1"),
            ({"score": "fid"}, "histogram"),
            ({"until": "bored"}, "information"),
            ({"max_micro_batches": 0}, "greater than or equal to 1"),
            ({"micro_batches": 3}, "not permitted"),
        ],
    )
    def test_invalid_settings_are_refused(self, chosen: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ValidationError, match=complaint):
            settings(**chosen)

    def test_the_largest_reachable_alpha(self) -> None:
        assert settings(alpha=64 / 0.95).alpha == pytest.approx(67.37, abs=0.01)

    @pytest.mark.parametrize(("batch_size", "fits"), [(16, True), (64, True), (65, False), (1, False)])
    def test_images_per_update_must_be_possible(self, batch_size: int, *, fits: bool) -> None:
        chosen = settings(alpha="auto", images_per_update=64, max_micro_batches=4)
        if fits:
            chosen.check(batch_size)
        else:
            with pytest.raises(ValueError, match="images_per_update = 64: up to 4 micro-batches"):
                chosen.check(batch_size)
