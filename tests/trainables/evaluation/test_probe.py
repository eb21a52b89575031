from __future__ import annotations

import numpy as np
import pytest

from trainables.evaluation.probe import ProbeScores, probe


def clusters(n: int, classes: int = 4, d: int = 8, spread: float = 0.1, seed: int = 0):  # type: ignore[no-untyped-def]
    """Returns features around one direction per class, and their labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    features = np.eye(d)[labels] + spread * random.standard_normal((n, d))
    return features.astype(np.float32), labels.astype(np.int64)


def test_separable_clusters_are_classified() -> None:
    assert probe(*clusters(200), *clusters(100, seed=1)) == ProbeScores(linear=1.0, knn=1.0, knn200=1.0)


def test_random_labels_are_near_chance() -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((1200, 8)).astype(np.float32)
    labels = random.integers(0, 4, 1200)
    scores = probe(features[:600], labels[:600], features[600:], labels[600:])
    assert scores.linear == pytest.approx(0.25, abs=0.07)  # 4 standard deviations
    assert scores.knn == pytest.approx(0.25, abs=0.07)
    assert scores.knn200 == pytest.approx(0.25, abs=0.07)


def test_scores_are_fractions_of_the_test_images() -> None:
    features, labels = clusters(200)
    test, test_labels = clusters(100, seed=1)
    test_labels[:30] = (test_labels[:30] + 1) % 4
    assert probe(features, labels, test, test_labels) == ProbeScores(linear=0.7, knn=0.7, knn200=0.7)


def test_neighbours_are_found_by_cosine_similarity() -> None:
    features, labels = clusters(200, spread=0.3)
    test, test_labels = clusters(200, spread=0.3, seed=1)
    lengths = np.random.default_rng(2).uniform(0.01, 100, (200, 1)).astype(np.float32)
    plain = probe(features, labels, test, test_labels)
    scaled = probe(features * lengths, labels, test * lengths[::-1], test_labels)
    assert 0.5 < plain.knn < 1
    assert (scaled.knn, scaled.knn200) == pytest.approx((plain.knn, plain.knn200), abs=0.011)


def test_the_linear_probe_is_invariant_to_scale() -> None:
    features, labels = clusters(200, spread=0.4)
    test, test_labels = clusters(200, spread=0.4, seed=1)
    units = np.logspace(-3, 3, 8, dtype=np.float32)
    plain = probe(features, labels, test, test_labels).linear
    assert 0.5 < plain < 1
    assert probe(features * units + 5, labels, test * units + 5, test_labels).linear == pytest.approx(plain, abs=0.011)


def test_twenty_neighbours_vote() -> None:
    """The nearest are 9 of class 1 (9 / 0.1 = 90), then 11 of class 0 (11 / 0.105 = 105), then others of class 1."""
    angles = np.concatenate([np.full(9, 0.1), np.full(11, 0.105), np.full(30, 0.11)])
    labels = np.array([1] * 9 + [0] * 11 + [1] * 30)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    test = np.array([[1.0, 0.0]], dtype=np.float32)
    assert probe(features, labels, test, np.array([0])).knn == 1.0


def test_works_with_fewer_than_twenty_images() -> None:
    assert probe(*clusters(12), *clusters(30, seed=1)).knn == 1.0
