from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.batches import CLUSTER_ORDERS, balanced_order, clustered_order, stratified_order
from trainables.batches.sampling import RUN, repeats


def clusters(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Returns strata of these sizes, in random order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def test_a_batch_of_100_of_1000_images_in_five_clusters() -> None:
    sizes = [200, 100, 500, 50, 150]
    strata = clusters(sizes)
    order = stratified_order(strata, seed=0, epoch=0)
    for start in range(0, 1000, 100):
        counts = np.bincount(strata[order[start : start + 100]], minlength=5)
        assert np.abs(counts - [20, 10, 50, 5, 15]).max() <= 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=12),
    start=st.floats(0, 1),
    length=st.floats(0, 1),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 5),
)
def test_all_consecutive_entries_have_the_clusters_proportions(
    sizes: list[int], start: float, length: float, seed: int, epoch: int
) -> None:
    strata = clusters(sizes, seed)
    order, n = stratified_order(strata, seed, epoch), len(strata)
    first = int(start * n)
    batch = order[first : first + max(int(length * (n - first)), 1)]
    counts = np.bincount(strata[batch], minlength=len(sizes))
    assert np.abs(counts - len(batch) * np.array(sizes) / n).max() <= 2


@settings(max_examples=50, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_every_image_occurs_once_and_the_order_depends_on_the_seed(sizes: list[int], seed: int, epoch: int) -> None:
    strata = clusters(sizes)
    order = stratified_order(strata, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(len(strata)))
    assert np.array_equal(order, stratified_order(strata, seed, epoch))


def test_epochs_and_seeds_differ_and_cluster_numbering_does_not_matter() -> None:
    strata = clusters([40, 60, 100])
    order = stratified_order(strata, 0, 0)
    assert not np.array_equal(order, stratified_order(strata, 0, 1))
    assert not np.array_equal(order, stratified_order(strata, 1, 0))
    assert np.array_equal(order, stratified_order(1000 * strata - 7, 0, 0))


def test_members_of_a_cluster_are_shuffled() -> None:
    strata = np.zeros(1000, dtype=int)
    assert abs(np.corrcoef(stratified_order(strata, 0, 0), np.arange(1000))[0, 1]) < 0.1


def test_proportions_hold_for_any_clusters_and_batch_size() -> None:
    sizes = np.random.default_rng(1).integers(1, 400, 60).tolist()
    strata = clusters(sizes)
    order = strata[stratified_order(strata, 0, 2)]
    for batch in (16, 100, 512, 3000):
        for start in range(0, len(order) - batch, batch):
            counts = np.bincount(order[start : start + batch], minlength=60)
            assert np.abs(counts - batch * np.array(sizes) / len(order)).max() <= 2


some_sizes = st.lists(st.integers(1, 60), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sizes=some_sizes, start=st.floats(0, 1), length=st.floats(0, 1), epoch=st.integers(0, 5))
def test_balanced_batches_have_equal_cluster_counts(sizes: list[int], start: float, length: float, epoch: int) -> None:
    strata = clusters(sizes)
    order, n = balanced_order(strata, 3, epoch), len(strata)
    assert order.shape == (n,)
    first = int(start * n)
    batch = order[first : first + max(int(length * (n - first)), 1)]
    counts = np.bincount(strata[batch], minlength=len(sizes))
    assert np.abs(counts - len(batch) / len(sizes)).max() <= 3  # 2, and 1 for the remainder of n / M


@settings(max_examples=50, deadline=None, derandomize=True)
@given(sizes=some_sizes, epochs=st.integers(1, 12))
def test_images_of_a_cluster_occur_equally_often_over_balanced_epochs(sizes: list[int], epochs: int) -> None:
    strata = clusters(sizes)
    seen = np.bincount(np.concatenate([balanced_order(strata, 3, e) for e in range(epochs)]), minlength=len(strata))
    for cluster in range(len(sizes)):
        own = seen[strata == cluster]
        assert own.max() - own.min() <= 1


def test_how_often_small_clusters_are_repeated() -> None:
    np.testing.assert_allclose(repeats([900, 90, 10]), [1000 / 3 / 900, 1000 / 3 / 90, 1000 / 3 / 10])
    strata = clusters([900, 90, 10])
    count = np.bincount(balanced_order(strata, 0, 0), minlength=1000)
    assert count[strata == 2].mean() == pytest.approx(33.3, abs=0.11)


def test_clustered_batches_have_few_clusters() -> None:
    strata = clusters([1000, 700, 300, 40, 8])
    order = clustered_order(strata, 0, 1)
    assert np.array_equal(np.sort(order), np.arange(2048))
    kinds = [len(set(strata[order[start : start + RUN]])) for start in range(0, 2048, RUN)]
    assert np.mean(kinds) < 2.2
    assert np.mean([len(set(strata[stratified_order(strata, 0, 1)[s : s + RUN]])) for s in range(0, 2048, RUN)]) > 3.5
    neighbours = strata[order[:-1]] == strata[order[1:]]
    assert neighbours.mean() > 0.95
    assert not np.array_equal(order, clustered_order(strata, 0, 2))


@pytest.mark.parametrize("order", CLUSTER_ORDERS.values())
@pytest.mark.parametrize(("strata", "named"), [([], "shape"), ([[0, 1]], "shape"), ([0.5, 1.0], "float64")])
def test_refuses_invalid_strata(order: Any, strata: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        order(strata, 0, 0)


@pytest.mark.parametrize("order", CLUSTER_ORDERS.values())
def test_one_image_and_one_cluster(order: Any) -> None:
    assert order([7], 0, 5).tolist() == [0]
    assert sorted(order([7] * 10, 0, 5).tolist()) == list(range(10))
