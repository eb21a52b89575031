"""Tests weights as a function of percentile and progress, and percentiles within a batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from torch import Tensor

from tests.trainables.gpu import no_waiting
from trainables.batches import percentiles, sample_weights
from trainables.settings import WeightSettings

Q = np.linspace(0, 1, 11)
SCHEDULES = ("linear", "cosine", "step")


class TestWeights:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_central_images_have_more_weight_early(self, schedule: Any) -> None:
        early, late = (sample_weights(Q, progress, 0.5, schedule) for progress in (0.1, 0.9))
        assert (np.diff(early) < 0).all()
        assert (np.diff(late) > 0).all()
        np.testing.assert_allclose(early, late[::-1])

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_weights_are_equal_at_mid_run(self, schedule: Any) -> None:
        np.testing.assert_allclose(sample_weights(Q, 0.5, 1.0, schedule), 1.0, atol=1e-15)

    def test_weights_follow_the_formula(self) -> None:
        np.testing.assert_allclose(sample_weights(Q, 0.25, 0.6), 1 + 0.6 * 0.5 * (1 - 2 * Q))
        cosine = math.cos(math.pi * 0.25)
        np.testing.assert_allclose(sample_weights(Q, 0.25, 0.6, "cosine"), 1 + 0.6 * cosine * (1 - 2 * Q))
        np.testing.assert_allclose(sample_weights(Q, 0.25, 0.6, "step"), 1 + 0.6 * (1 - 2 * Q))

    def test_zero_strength_gives_weights_of_one(self) -> None:
        assert sample_weights(Q**3, 0.1, 0.0).tolist() == [1.0] * 11

    @given(arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1)), st.floats(0, 1), st.floats(0, 1))
    def test_weights_have_mean_1_and_are_not_negative(self, q: Any, progress: float, strength: float) -> None:
        weights = sample_weights(q, progress, strength)
        assert weights.mean() == pytest.approx(1.0)
        assert (weights >= 0).all()
        torch.testing.assert_close(sample_weights(torch.from_numpy(q), progress, strength), torch.from_numpy(weights))

    def test_weights_that_are_all_zero_become_equal(self) -> None:
        assert sample_weights(np.zeros(3), 1.0, 1.0).tolist() == [1.0] * 3
        assert sample_weights(torch.zeros(3), 1.0, 1.0).tolist() == [1.0] * 3

    def test_weights_are_smooth_in_progress(self) -> None:
        course = np.array([sample_weights(Q, progress, 1.0) for progress in np.linspace(0, 1, 101)])
        assert abs(np.diff(course, axis=0)).max() < 0.021

    @pytest.mark.parametrize(("progress", "strength"), [(-0.1, 0.5), (1.1, 0.5), (math.nan, 0.5)])
    def test_progress_must_be_in_range(self, progress: float, strength: float) -> None:
        with pytest.raises(ValueError, match="progress"):
            sample_weights(Q, progress, strength)

    @pytest.mark.parametrize("q", [[0, 1.4], [-0.2, 0.5], [math.nan, 0.5]])
    def test_percentiles_must_be_in_range(self, q: list[float]) -> None:
        for percentile in (np.array(q), torch.tensor(q)):
            with pytest.raises(ValueError, match=r"percentiles from .* must be within 0 to 1"):
                sample_weights(percentile, 0.2, 0.5)

    @pytest.mark.parametrize("strength", [-0.1, 1.01, math.nan])
    def test_strength_must_be_in_range(self, strength: float) -> None:
        with pytest.raises(ValueError, match=r"strength .* must be within 0 to 1, because weights must not be neg"):
            sample_weights(Q, 0.2, strength)


def around(centres: Tensor, each: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns shuffled embeddings of length 1 around centres, and the centre of each."""
    generator = torch.Generator().manual_seed(seed)
    strata = torch.arange(len(centres)).repeat_interleave(each)
    strata = strata[torch.randperm(len(strata), generator=generator)]
    noise = torch.randn(len(strata), centres.shape[1], generator=generator) * spread
    return F.normalize(centres[strata] + noise, dim=1), strata


class TestPercentiles:
    def test_ranks_by_the_distance_to_the_mean_of_the_cluster(self) -> None:
        """Compares with a loop over images."""
        z, strata = around(torch.eye(5)[:3], 7, 0.4)
        expected = torch.zeros(len(z))
        for cluster in range(3):
            own = (strata == cluster).nonzero().flatten()
            centre = F.normalize(z[own].mean(0), dim=0)
            order = (z[own] @ centre).argsort(descending=True)
            for rank, member in enumerate(own[order]):
                expected[member] = rank / (len(own) - 1)
        torch.testing.assert_close(percentiles(z, strata, 3), expected)

    def test_k_means_finds_the_clusters(self) -> None:
        z, strata = around(torch.eye(6)[:4], 50, 0.1)
        first = torch.cat([(strata == c).nonzero()[0] for c in range(4)])  # begins at one image of each
        order = torch.cat([first, torch.tensor([i for i in range(len(z)) if i not in first.tolist()])])
        torch.testing.assert_close(percentiles(z[order], None, 4), percentiles(z[order], strata[order], 4))

    @given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 5))
    def test_every_cluster_goes_from_centre_to_edge(self, n: int, clusters: int, given_strata: bool, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        z = F.normalize(torch.randn(n, 3, generator=generator), dim=1)
        strata = torch.randint(0, clusters, (n,), generator=generator) if given_strata else None
        q = percentiles(z, strata, min(clusters, n) if strata is None else clusters)
        assert ((q >= 0) & (q <= 1)).all()
        for cluster in set(strata.tolist()) if strata is not None else ():
            own = q[strata == cluster].sort().values
            expected = torch.linspace(0, 1, len(own)) if len(own) > 2 else torch.full((len(own),), 0.5)
            torch.testing.assert_close(own, expected)

    def test_equal_images_are_ranked_in_order(self) -> None:
        z = F.normalize(torch.ones(5, 3), dim=1)
        assert percentiles(z, None, 1).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]

    def test_empty_clusters_are_ignored(self) -> None:
        z = F.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), dim=1)
        q = percentiles(z, torch.tensor([0, 2, 0, 2, 0, 2]), 5)
        assert sorted(q.tolist()) == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_percentiles_do_not_synchronise(self) -> None:
        z, strata = (part.cuda() for part in around(torch.eye(6)[:4], 50, 0.1))
        with no_waiting():
            for known in (strata, None):
                sample_weights(percentiles(z, known, 4), 0.1, 0.5)


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ({"mode": "static", "strength": -0.5}, "greater than or equal to 0"),
        ({"mode": "static", "strength": 1.5}, "less than or equal to 1"),
        ({"mode": "sometimes"}, "none"),
        ({"mode": "static", "centres": "strata"}, "centres = strata has no effect with mode static"),
        ({"mode": "none", "strength": 0.9}, "strength = 0.9 has no effect with mode none"),
        ({"mode": "batch", "centres": "strata", "clusters": 4}, "clusters = 4 has no effect with mode batch"),
        ({"strength": 0.9}, "mode"),
        ({"schedule": "slow"}, "linear"),
    ],
)
def test_invalid_settings_are_refused(chosen: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        WeightSettings.model_validate(chosen)
