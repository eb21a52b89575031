"""Tests which batches make an update, and the choice of alpha."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.batches import AdaptiveAccumulation, InformationAccumulator, SampleStream
from trainables.batches.scores import HistogramScore
from trainables.batches.updates import alpha_for
from trainables.settings import InformationSettings

#: 200 images, the first half of one cluster.
STRATA = np.repeat([0, 1], 100)


def updates(stream: SampleStream | None = None, budget: int = 10_000, **chosen: Any) -> AdaptiveAccumulation:
    settings = InformationSettings.model_validate({"until": "information", **chosen})
    return AdaptiveAccumulation(settings, stream or SampleStream(200, seed=0), HistogramScore(STRATA), budget)


def sorted_stream() -> SampleStream:
    """Returns a stream sorted by cluster: batches of 20 hold one cluster and score 0.5, except in the middle."""
    return SampleStream(200, 0, lambda epoch: np.arange(200))


class TestUpdates:
    def test_weights_are_proportional_to_scores(self) -> None:
        scored = HistogramScore(STRATA)
        stream = SampleStream(200, seed=5)
        update = updates(stream, alpha=3).at(40, 20)
        expected = [scored(stream.take(position, 20)) for position in range(40, 40 + 20 * len(update.scores), 20)]
        assert update.scores.tolist() == expected
        np.testing.assert_allclose(update.weights, np.array(expected) / sum(expected))
        assert sum(expected) >= 0.95 * 3 > sum(expected[:-1])
        assert [list(group) for group in update.groups] == [[number] for number in range(len(expected))]

    def test_shared_negatives_make_one_group(self) -> None:
        assert updates(alpha=3, negatives="shared").at(0, 20).groups == [range(4)]

    @pytest.mark.parametrize(("negatives", "count"), [("plain", 25), ("shared", 10)])
    def test_shared_updates_hold_no_image_twice(self, negatives: str, count: int) -> None:
        """An update may be longer than an epoch of ten batches, unless its batches share their negatives."""
        update = updates(sorted_stream(), alpha=30, max_micro_batches=25, tolerance=0.5, negatives=negatives).at(0, 20)
        assert (len(update.weights), update.informed) == (count, False)

    def test_the_number_of_micro_batches_is_bounded(self) -> None:
        assert len(updates(sorted_stream(), alpha=4).at(0, 20).weights) == 8  # 0.5 each: 3.8 after eight
        update = updates(sorted_stream(), alpha=4, max_micro_batches=5).at(0, 20)
        np.testing.assert_allclose(update.weights, np.full(5, 0.2))

    def test_a_remainder_is_carried_into_the_next_epoch(self) -> None:
        assert len(updates(sorted_stream(), alpha=4).at(140, 20).weights) == 8

    @pytest.mark.parametrize(("position", "count"), [(140, 3), (180, 1), (190, 1), (0, 8), (170, 2)])
    def test_a_remainder_is_applied_at_the_end_of_the_epoch(self, position: int, count: int) -> None:
        """The batch that reaches the end of the epoch is the last one."""
        assert len(updates(sorted_stream(), alpha=4, remainder="apply").at(position, 20).weights) == count

    def test_updates_until_a_report(self) -> None:
        informed = updates(sorted_stream(), alpha=4)
        coming = informed.until(40, 350, 20)
        assert [len(update.weights) for update in coming] == [8, 8]
        assert all(update.informed for update in coming)
        assert informed.until(40, 40, 20) == []

    def test_an_unreachable_alpha_raises(self) -> None:
        assert updates(sorted_stream(), alpha=4).mean_images(20) == 160
        unreachable = updates(sorted_stream(), alpha=40, max_micro_batches=40)
        with pytest.raises(
            ValueError, match=r"alpha = 40 is never reached: the scores of 40 micro-batches .* add up to 20"
        ):
            unreachable.mean_images(20)
        with pytest.raises(ValueError, match="alpha = 6 is never reached"):  # in one epoch
            updates(sorted_stream(), alpha=6, remainder="apply").mean_images(20)
        short = updates(sorted_stream(), budget=100, alpha=40, max_micro_batches=40)
        assert short.mean_images(20) == 100  # the budget ends first

    def test_the_last_update_ends_with_the_budget(self) -> None:
        informed, position, seen = updates(sorted_stream(), budget=310, alpha=4), 0, []
        while position < 310:
            seen.append(len(informed.at(position, 20).weights))
            position += 20 * seen[-1]
        assert position == 320  # the last batch may exceed the budget, as with fixed accumulation
        assert seen == [8, 8]

    @given(
        st.integers(2, 60),
        st.floats(0.2, 6),
        st.sampled_from(["carry", "apply"]),
        st.integers(0, 3),
    )
    def test_every_image_is_used_once_per_epoch(self, batch_size: int, alpha: float, remainder: str, seed: int) -> None:
        stream = SampleStream(200, seed)
        informed, position, used = updates(stream, alpha=alpha, remainder=remainder), 0, []
        while position < 400:
            count = len(informed.at(position, batch_size).weights)
            assert count >= 1
            used += stream.take(position, count * batch_size).tolist()
            position += count * batch_size
        assert sorted(used[:200]) == sorted(used[200:400]) == list(range(200))


class TestAlpha:
    @pytest.mark.parametrize(("images", "batch_size"), [(40, 20), (100, 20), (64, 8), (200, 50)])
    def test_auto_reaches_images_per_update(self, images: int, batch_size: int) -> None:
        stream = SampleStream(200, seed=1)
        informed, position, counts = updates(stream, alpha="auto", images_per_update=images), 0, []
        while position < 4_000:
            counts.append(len(informed.at(position, batch_size).weights))
            position += counts[-1] * batch_size
        assert batch_size * np.mean(counts) == pytest.approx(images, rel=0.1)

    def test_equal_scores_leave_a_margin_on_both_sides(self) -> None:
        alpha = alpha_for([0.8] * 30, wanted=3, tolerance=0.05, most=10)
        assert 2.1 * 0.8 < 0.95 * alpha < 2.9 * 0.8

    @given(st.lists(st.floats(0.05, 1), min_size=3, max_size=50), st.floats(1, 8))
    def test_auto_is_nearly_optimal(self, scores: list[float], wanted: float) -> None:
        endless = scores * math.ceil(8 * wanted / len(scores))

        def mean(alpha: float) -> float:
            accumulator, counted, complete = InformationAccumulator(alpha), 0, False
            for score in endless:
                complete = accumulator.add(score)
                counted += complete
            return len(endless) / (counted + (not complete))

        found = abs(mean(alpha_for(scores, wanted, 0.05, 64)) - wanted)
        others = min(abs(mean(alpha) - wanted) for alpha in np.linspace(0.05, 9, 60))
        assert found <= others + 1e-3

    def test_auto_refuses_scores_that_are_all_zero(self) -> None:
        with pytest.raises(ValueError, match="all scores are 0"):
            alpha_for([0.0, 0.0], 2, 0.05, 8)
