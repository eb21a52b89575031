from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.batches import SampleStream, balanced_order, shard_rows, stratified_order

lengths = st.integers(1, 40)
seeds = st.integers(0, 2**32)
batches = st.lists(st.integers(1, 60), min_size=1, max_size=20)


@pytest.mark.parametrize("stratified", [False, True])
@given(
    lengths,
    seeds,
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([1, 2, 3, 4, 7]), st.booleans()), min_size=1, max_size=20),
)
def test_every_epoch_has_each_index_once(
    stratified: bool, length: int, seed: int, schedule: list[tuple[int, int, bool]]
) -> None:
    """Holds for any batch sizes, numbers of workers and interruptions."""
    order = partial(stratified_order, np.arange(length) % 3, seed) if stratified else None
    streams: list[SampleStream] = []
    taken: list[int] = []
    seen = 0
    for batch, workers, interrupted in schedule:
        if interrupted or len(streams) != workers:  # only the number of samples seen is kept
            streams = [SampleStream(length, seed, order) for _ in range(workers)]
        parts = [stream.take(seen, batch)[shard_rows(batch, worker, workers)] for worker, stream in enumerate(streams)]
        assert sum(map(len, parts)) == batch
        assert all(part.dtype == np.int64 for part in parts)
        taken += np.concatenate(parts).tolist()
        seen += batch
    for start in range(0, seen, length):
        epoch = taken[start : start + length]
        if len(epoch) == length:
            assert sorted(epoch) == list(range(length))
        assert len(set(epoch)) == len(epoch)


@given(lengths, seeds, batches, batches)
def test_the_stream_is_the_same_for_all_batch_sizes(length: int, seed: int, ones: list[int], others: list[int]) -> None:
    def first(count: int, sizes: list[int]) -> list[int]:
        stream, taken = SampleStream(length, seed), []
        for size in sizes:
            taken += stream.take(len(taken), size).tolist()
        return taken[:count]

    common = min(sum(ones), sum(others))
    assert first(common, ones) == first(common, others)


@given(lengths, seeds, st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60)), min_size=1, max_size=8))
def test_any_slice_can_be_read_in_any_order(length: int, seed: int, parts: list[tuple[int, int]]) -> None:
    whole = SampleStream(length, seed).take(0, 260)
    stream = SampleStream(length, seed)
    for position, count in parts:
        np.testing.assert_array_equal(stream.take(position, count), whole[position : position + count])


@pytest.mark.parametrize("order", ["shuffled", "balanced"])
@given(lengths, seeds, st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), min_size=1, max_size=8))
def test_detects_batches_with_repeated_images(order: str, length: int, seed: int, parts: list[tuple[int, int]]) -> None:
    balanced = partial(balanced_order, np.minimum(np.arange(length), 2), seed)  # images 0 and 1 are repeated
    stream = SampleStream(length, seed, balanced if order == "balanced" else None)
    for position, count in parts:
        taken = stream.take(position, count).tolist()
        assert stream.repeats(position, count) == (len(set(taken)) < count)
        if order == "shuffled":
            assert stream.may_repeat(position, count) == (position % length + count > length)
            assert stream.may_repeat(position, count) or not stream.repeats(position, count)


def test_epochs_and_seeds_have_different_orders() -> None:
    epochs = SampleStream(50, 3).take(0, 150).reshape(3, 50)
    other = SampleStream(50, 4).take(0, 50)
    orders = [*epochs.tolist(), other.tolist(), list(range(50))]
    assert len({tuple(order) for order in orders}) == 5
    # The second epoch of a seed differs from the first of the next seed.
    assert other.tolist() != SampleStream(50, 3).take(50, 50).tolist()


def test_every_position_is_equally_likely() -> None:
    first = np.array([SampleStream(5, seed).take(0, 5) for seed in range(2000)])
    counts = np.array([[(first[:, place] == index).sum() for index in range(5)] for place in range(5)])
    assert np.abs(counts - 400).max() < 4.5 * np.sqrt(400 * 0.8)  # 4.5 standard deviations


def test_returned_indices_are_writable() -> None:
    stream = SampleStream(10, 0)
    taken = stream.take(0, 4)
    expected = taken.copy()
    taken[:] = -1
    np.testing.assert_array_equal(stream.take(0, 4), expected)


@given(st.integers(0, 500), st.integers(1, 64))
def test_shards_partition_the_batch_evenly(count: int, workers: int) -> None:
    rows = [list(range(count)[shard_rows(count, worker, workers)]) for worker in range(workers)]
    assert [row for part in rows for row in part] == list(range(count))
    sizes = [len(part) for part in rows]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("workers", "sizes"), [(1, [13]), (2, [6, 7]), (4, [3, 3, 3, 4]), (13, [1] * 13)])
def test_shards_of_thirteen(workers: int, sizes: list[int]) -> None:
    assert [len(range(13)[shard_rows(13, worker, workers)]) for worker in range(workers)] == sizes


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 5))
def test_an_order_is_computed_once_per_epoch_for_all_batch_sizes(sizes: list[int], ahead: int) -> None:
    strata = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [20, 30, 50]))
    asked: list[int] = []

    def order(epoch: int) -> np.ndarray:
        asked.append(epoch)
        return stratified_order(strata, 3, epoch)

    stream, position, taken = SampleStream(100, seed=3, epoch_order=order), 0, []
    for size in sizes:
        stream.take(position + ahead, size)  # prefetching reads ahead, also across the end of an epoch
        taken += stream.take(position, size).tolist()
        position += size
    assert sorted(set(asked)) == asked
    expected = np.concatenate([stratified_order(strata, 3, epoch) for epoch in range(position // 100 + 1)])
    assert taken == expected[:position].tolist()


def test_an_order_must_match_the_images() -> None:
    with pytest.raises(ValueError, match="the epoch order has 3 entries, but there are 4 images"):
        SampleStream(4, seed=0, epoch_order=lambda epoch: np.arange(3)).take(0, 2)
