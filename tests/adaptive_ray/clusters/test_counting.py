"""Counting clusters, on mixtures with a known number and on invalid input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from adaptive_ray.clusters import count_clusters
from adaptive_ray.clusters.methods import METHODS
from tests.adaptive_ray.clusters.mixtures import mixture


@pytest.mark.parametrize("m", [2, 3, 7, pytest.param(20, marks=pytest.mark.slow)])
def test_default_finds_the_clusters_of_a_mixture(m: int) -> None:
    features, truth = mixture(m, n=600 + 60 * m)
    found = count_clusters(features)
    assert found.m == m
    assert adjusted_rand_score(truth, found.labels) > 0.98
    assert found.stability > 0.95
    assert max(found.scores, key=lambda k: found.scores[k]) == m
    assert found.sizes.tolist() == sorted(found.sizes, reverse=True)
    assert np.array_equal(np.bincount(found.labels), found.sizes)
    assert found.labels.dtype == np.int64
    for cluster in range(m):  # centrality is the rank of the distance
        own = found.labels == cluster
        distance = np.linalg.norm(features[own] - features[own].mean(0), axis=1)
        expected = (np.argsort(np.argsort(distance)) + 0.5) / own.sum()
        np.testing.assert_allclose(found.centrality[own], expected, atol=2 / own.sum())
    assert found.centrality.mean() == pytest.approx(0.5, abs=1e-3)


def test_default_uses_silhouette_in_few_dimensions() -> None:
    truth = np.arange(800) % 4
    corners = np.array([[0, 0], [12, 0], [0, 12], [12, 12]])
    features = corners[truth] + np.random.default_rng(0).normal(size=(800, 2))
    found = count_clusters(features)
    assert (found.m, found.method) == (4, "silhouette")
    assert adjusted_rand_score(truth, found.labels) > 0.98
    assert count_clusters(features, "graph").m != 4


@pytest.mark.parametrize("method", [name for name in METHODS if name != "auto"])
def test_every_method_finds_separated_clusters(method: str) -> None:
    features, truth = mixture(5, n=600, dimensions=12, separation=3)
    found = count_clusters(features, method)
    assert found.m == 5
    assert found.method == method
    assert adjusted_rand_score(truth, found.labels) > 0.95
    assert found.m in found.scores


def test_one_gaussian_is_one_cluster() -> None:
    for dimensions in (2, 64):
        features = np.random.default_rng(0).normal(size=(1200, dimensions)).astype(np.float32)
        found = count_clusters(features)
        assert found.m == 1
        assert "no clusters: the graph has purity" in found.notes[0]
        assert set(found.labels) == {0}


@pytest.mark.parametrize("method", ["auto", "silhouette", "bic", "eigengap"])
@pytest.mark.parametrize("m", [1, 3, 12])
def test_fixed_number(method: str, m: int) -> None:
    features, _ = mixture(6, n=400)
    found = count_clusters(features, method, m=m)
    assert (found.m, found.method, found.scores) == (m, "fixed", {})
    assert sorted(set(found.labels)) == list(range(m))


def test_a_seed_gives_the_same_clusters() -> None:
    features, _ = mixture(2, n=300)
    found, again = (count_clusters(features, seed=4) for _ in range(2))
    assert np.array_equal(found.labels, again.labels)
    assert (found.scores, found.stability) == (again.scores, again.stability)


def test_vectors_outside_the_sample_are_assigned(tmp_path: Path) -> None:
    features, truth = mixture(8, n=6000, dimensions=32)
    np.save(tmp_path / "features.npy", features.astype(np.float16))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    found = count_clusters(mapped, sample=1500)
    assert found.m == 8
    assert adjusted_rand_score(truth, found.labels) > 0.98


class TestBadInput:
    @pytest.mark.parametrize(
        ("features", "named"),
        [
            (np.zeros(5), "shape"),
            (np.zeros((0, 4)), "shape"),
            (np.zeros((4, 0)), "shape"),
            (np.zeros((5, 2), dtype=int), "int64"),
            ([[1.0, 2.0], [np.nan, 0.0]], "image 1 are not finite"),
            ([[1.0, np.inf], [1.0, 0.0]], "image 0 are not finite"),
        ],
    )
    def test_features(self, features: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            count_clusters(features)

    def test_method(self) -> None:
        with pytest.raises(ValueError, match=r"'grahp' .* did you mean 'graph'"):
            count_clusters(np.eye(3), "grahp")

    @pytest.mark.parametrize("m", [0, 51])
    def test_more_clusters_than_images(self, m: int) -> None:
        with pytest.raises(ValueError, match=f"m = {m} is out of range: use 1 to the number of images \\(50\\)"):
            count_clusters(mixture(3, n=50)[0], m=m)

    def test_more_clusters_than_distinct_images(self) -> None:
        features = np.repeat(np.eye(4), 10, axis=0)
        with pytest.raises(ValueError, match="only 4 of the 40 images differ"):
            count_clusters(features, m=5)
        assert count_clusters(features, m=4).sizes.tolist() == [10] * 4

    def test_hdbscan_with_a_fixed_number(self) -> None:
        with pytest.raises(ValueError, match="m = 4"):
            count_clusters(mixture(3, n=200)[0], "hdbscan", m=4)


class TestFallbacks:
    def test_constant_images_are_one_cluster(self) -> None:
        found = count_clusters(np.ones((40, 8)))
        assert (found.m, found.stability) == (1, 1.0)
        assert found.notes[0] == "all features are equal"

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_few_images(self, n: int) -> None:
        found = count_clusters(np.random.default_rng(0).normal(size=(n, 4)))
        assert found.m == 1
        assert len(found.labels) == n

    def test_duplicates_are_noted(self) -> None:
        features, _ = mixture(3, n=100)
        found = count_clusters(np.repeat(features, 4, axis=0))
        assert "300 of 400 images are duplicates of others" in found.notes
        assert found.m >= 3

    def test_few_distinct_images(self) -> None:
        found = count_clusters(np.repeat(np.eye(6), 30, axis=0))
        assert 1 <= found.m <= 6

    def test_one_cluster_per_image(self) -> None:
        features, _ = mixture(2, n=30)
        found = count_clusters(features, m=30)
        assert found.sizes.tolist() == [1] * 30
        assert "30 clusters have only one image" in found.notes
        assert found.centrality.tolist() == [0.5] * 30

    def test_outlier_may_be_a_cluster(self) -> None:
        features, _ = mixture(2, n=200)
        features = np.concatenate([features, np.full((1, 64), 1000.0, dtype=np.float32)])
        found = count_clusters(features, "silhouette", m=3)
        assert found.sizes.min() == 1
