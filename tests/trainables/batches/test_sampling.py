from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.batches import stratified_order


def clusters(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Images of clusters of these sizes, in random order."""
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
def test_every_stretch_holds_every_cluster_in_its_share(
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
def test_every_image_comes_once_and_the_seed_decides(sizes: list[int], seed: int, epoch: int) -> None:
    strata = clusters(sizes)
    order = stratified_order(strata, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(len(strata)))
    assert np.array_equal(order, stratified_order(strata, seed, epoch))


def test_epochs_and_seeds_differ_and_names_of_clusters_do_not_matter() -> None:
    strata = clusters([40, 60, 100])
    order = stratified_order(strata, 0, 0)
    assert not np.array_equal(order, stratified_order(strata, 0, 1))
    assert not np.array_equal(order, stratified_order(strata, 1, 0))
    assert np.array_equal(order, stratified_order(1000 * strata - 7, 0, 0))


def test_who_comes_first_in_a_cluster_is_shuffled() -> None:
    strata = np.zeros(1000, dtype=int)
    assert abs(np.corrcoef(stratified_order(strata, 0, 0), np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize(("strata", "named"), [([], "shape"), ([[0, 1]], "shape"), ([0.5, 1.0], "float64")])
def test_refuses_what_are_no_clusters(strata: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        stratified_order(strata, 0, 0)
