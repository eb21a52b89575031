"""Tests scores of batches: they are bounded and higher for batches that represent the data better."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from trainables.batches.scores import BatchScore, FrechetScore, HistogramScore, MMDScore, batch_score

CLUSTERS, EACH = 6, 300


def mixture(seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns strata [n] and features [n, 4] of equal clusters."""
    generator = np.random.default_rng(seed)
    centres = 4 * generator.normal(size=(CLUSTERS, 4))
    strata = np.repeat(np.arange(CLUSTERS), EACH)
    return strata, (centres[strata] + generator.normal(size=(len(strata), 4))).astype(np.float32)


def scores() -> dict[str, BatchScore]:
    strata, features = mixture()
    return {name: batch_score(name, strata, features, seed=0) for name in ("histogram", "frechet", "mmd")}  # type: ignore[arg-type]


SCORES = scores()


def batch_of(clusters: int, size: int = 120, seed: int = 0) -> NDArray[np.int64]:
    """Returns indices of images of the first clusters."""
    return np.random.default_rng(seed).choice(clusters * EACH, size, replace=False)


@pytest.mark.parametrize("name", SCORES)
def test_scores_grow_with_the_number_of_clusters(name: str) -> None:
    one, some, all_of_them = (
        np.mean([SCORES[name](batch_of(held, seed=seed)) for seed in range(8)]) for held in (1, 3, CLUSTERS)
    )
    assert one + 0.1 < some < all_of_them - 0.1
    assert all_of_them > 0.85


@pytest.mark.parametrize("name", SCORES)
def test_the_score_of_the_whole_data_is_one(name: str) -> None:
    assert SCORES[name](np.arange(CLUSTERS * EACH)) == pytest.approx(1.0, abs=1e-5)


@given(st.lists(st.integers(0, CLUSTERS * EACH - 1), min_size=1, max_size=40))
def test_scores_are_bounded(indices: list[int]) -> None:
    for score in SCORES.values():
        assert 0.0 <= score(np.array(indices)) <= 1.0 + 1e-9


@pytest.mark.parametrize("name", SCORES)
def test_the_order_within_a_batch_does_not_matter(name: str) -> None:
    batch = batch_of(4)
    assert SCORES[name](batch[::-1]) == pytest.approx(SCORES[name](batch), abs=1e-6)


def test_histogram_is_one_minus_the_total_variation() -> None:
    score = HistogramScore([7, 7, 7, 7, 7, 7, 3, 3, 3, 9])  # proportions 0.6, 0.3, 0.1
    assert score(np.array([0, 1])) == pytest.approx(1 - (0.4 + 0.3 + 0.1) / 2)
    assert score(np.array([0, 6])) == pytest.approx(1 - (0.1 + 0.2 + 0.1) / 2)
    assert score(np.arange(10)) == pytest.approx(1.0)


def test_frechet_is_the_distance_of_two_normal_distributions() -> None:
    """Compares with the formula with a matrix square root, in whitened coordinates."""
    _, features = mixture(1)
    data = features.astype(np.float64)
    batch = batch_of(3, 200)
    white = (data - data.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(data.T, bias=True))).T
    mean, covariance = white[batch].mean(0), np.cov(white[batch].T, bias=True)
    distance = mean @ mean + np.trace(covariance + np.eye(4) - 2 * sqrtm(covariance).real)
    assert FrechetScore(features)(batch) == pytest.approx(1 / (1 + distance / 4), abs=1e-6)


def test_frechet_ignores_directions_that_do_not_vary() -> None:
    _, features = mixture()
    constant = np.concatenate([features, np.full((len(features), 2), 5, np.float32)], axis=1)
    assert FrechetScore(constant)(batch_of(2)) == pytest.approx(SCORES["frechet"](batch_of(2)), abs=1e-4)
    assert FrechetScore(np.ones((10, 3), np.float32))(np.array([1, 2])) == 1.0


def test_mmd_approximates_the_exact_kernel() -> None:
    _, features = mixture(2)
    generator, data, batch = np.random.default_rng(0), features.astype(np.float64), batch_of(2)
    pairs = generator.integers(0, len(data), (2, 1000))
    width = np.median(np.linalg.norm(data[pairs[0]] - data[pairs[1]], axis=1))

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        distances = ((x[:, None] - y[None]) ** 2).sum(-1)
        return float(np.exp(-distances / (2 * width**2)).mean())

    squared = kernel(data[batch], data[batch]) + kernel(data, data) - 2 * kernel(data[batch], data)
    assert MMDScore(features)(batch) == pytest.approx(1 - math.sqrt(squared / 2), abs=0.03)


def test_mmd_depends_on_its_seed() -> None:
    _, features = mixture()
    once, again, other = (MMDScore(features, seed)(batch_of(3)) for seed in (1, 1, 2))
    assert once == again != other


def test_missing_strata_and_features_are_refused() -> None:
    strata, features = mixture()
    with pytest.raises(ValueError, match="score histogram needs the data's strata"):
        batch_score("histogram", None, features, 0)
    for name in ("frechet", "mmd"):
        with pytest.raises(ValueError, match=f"score {name} needs the data's features"):
            batch_score(name, strata, None, 0)
