"""Layout: free resources are divided among the candidates. Does not start Ray."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.loading import parse_config
from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.layout import Layout, Workers
from adaptive_ray.ray_cluster.nodes import Node
from schedulers import Candidate


def configured(
    candidates: int = 3, *, winner: Any = "auto", smallest: int = 64, max_concurrent: Any = "auto", **trial: Any
) -> ExperimentConfig:
    return parse_config(
        {
            "dataset": {"name": "mnist5k"},
            "candidates": [smallest * 2**power for power in range(candidates)],
            "budget": {"epochs": 20},
            "race": {"max_concurrent": max_concurrent},
            "trial": trial,
            "winner": {"workers": winner},
        }
    )


GIB = 1 << 30


def nodes(*free: tuple[float, float], memory: int = 1 << 40) -> list[Node]:
    return [Node(f"node {number}", cpus, gpus, memory) for number, (cpus, gpus) in enumerate(free)]


def layout(config: ExperimentConfig, *free: tuple[float, float], memory: int = 1 << 40) -> Layout:
    return Layout.of(config, nodes(*free, memory=memory))


def sizes(workers: Workers) -> tuple[int, float, float]:
    return workers.count, workers.cpus, workers.gpus


def complaint(config: ExperimentConfig, *free: tuple[float, float], memory: int = 1 << 40) -> str:
    with pytest.raises(UserError) as caught:
        layout(config, *free, memory=memory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestCpu:
    @pytest.mark.parametrize(
        ("candidates", "trial", "cores", "race", "winner", "concurrent"),
        [
            (3, {}, 8, (1, 2.6666, 0), (1, 8, 0), 3),
            (3, {}, 2, (1, 0.6666, 0), (1, 2, 0), 3),
            (4, {}, 1, (1, 0.5, 0), (1, 1, 0), 2),  # two on a core, the others wait
            (12, {}, 2, (1, 0.5, 0), (1, 2, 0), 4),
            (2, {"workers": 4}, 4, (4, 0.5, 0), (4, 1, 0), 2),
            (2, {"workers": 4}, 8, (4, 1, 0), (4, 2, 0), 2),
            (2, {"cpus_per_worker": 4}, 16, (1, 4, 0), (1, 4, 0), 2),
        ],
    )
    def test_on_one_node(
        self, candidates: int, trial: Any, cores: int, race: Any, winner: Any, concurrent: int
    ) -> None:
        found = layout(configured(candidates, **trial), (cores, 0))
        assert (sizes(found.race), sizes(found.winner), found.concurrent) == (race, winner, concurrent)

    def test_threads_are_of_whole_cores(self) -> None:
        assert layout(configured(3), (2, 0)).race.threads == 1
        assert layout(configured(3), (8, 0)).race.threads == 2
        assert layout(configured(3), (8, 0)).winner.threads == 8
        assert layout(configured(2, cpus_per_worker=4), (16, 0)).race.threads == 4

    def test_a_worker_has_its_cores_from_one_node(self) -> None:
        found = layout(configured(2, cpus_per_worker=4), (6, 0), (6, 0), (3, 0))
        assert (found.winner.count, found.concurrent) == (1, 2)
        text = complaint(configured(2, cpus_per_worker=4), (3, 0), (3, 0))
        for part in ("only 0 workers of 4 CPU cores can be placed", "node 0: 3 CPU cores", "node 1: 3 CPU cores"):
            assert part in text

    def test_candidates_share_and_wait_if_others_use_resources(self) -> None:
        found = layout(configured(6), (1, 0), (0, 0), (1.5, 0))
        assert (sizes(found.race), sizes(found.winner), found.concurrent) == ((1, 0.5, 0), (1, 1.5, 0), 5)

    def test_workers_are_as_large_as_can_be_placed(self) -> None:
        assert sizes(layout(configured(1, workers=2), (4, 0), (4, 0)).race) == (2, 4, 0)
        assert sizes(layout(configured(1, workers=3), (4, 0), (4, 0)).race) == (3, 2, 0)
        assert sizes(layout(configured(2), (4, 0), (4, 0)).race) == (1, 4, 0)

    def test_configured_winner_workers(self) -> None:
        assert sizes(layout(configured(3, winner=4), (8, 0)).winner) == (4, 2, 0)

    def test_no_more_workers_than_images_in_the_smallest_batch(self) -> None:
        assert layout(configured(2, smallest=4), (32, 8)).winner.count == 4

    def test_workers_shard_the_batch_and_not_the_update(self) -> None:
        config = configured(1, smallest=64).model_copy(update={"candidates": [Candidate(4, 16), Candidate(64)]})
        assert layout(config, (32, 8)).winner.count == 4

    def test_gpus_are_not_used_on_request(self) -> None:
        found = layout(configured(2, use_gpu=False), (4, 8))
        assert (sizes(found.race), sizes(found.winner)) == ((1, 2, 0), (1, 4, 0))

    @given(
        candidates=st.integers(1, 12),
        workers=st.integers(1, 8),
        each=st.sampled_from([0.5, 1, 2, 3]),
        free=st.lists(st.sampled_from([0, 0.5, 1, 2, 3, 7, 64]), min_size=1, max_size=4),
        wanted=st.sampled_from(["auto", 1, 5]),
    )
    def test_concurrent_candidates_fit(
        self, candidates: int, workers: int, each: float, free: list[float], wanted: Any
    ) -> None:
        config = configured(candidates, workers=workers, cpus_per_worker=each, max_concurrent=wanted)
        if workers > sum(int(cpus / each) for cpus in free):
            assert f"trial.workers = {workers}" in complaint(config, *((cpus, 0) for cpus in free))
            return
        found = layout(config, *((cpus, 0) for cpus in free))
        assert found.race.count == workers
        assert 0 < found.race.cpus <= each
        assert 1 <= found.concurrent <= (candidates if wanted == "auto" else wanted)
        fitting = [int(cpus / found.race.cpus + 1e-9) for cpus in free]
        assert found.concurrent * workers <= sum(fitting)
        assert found.race.cpus >= each / 2 - 1e-4 or wanted != "auto"
        assert found.winner.count == workers
        assert found.race.gpus == found.winner.gpus == 0


class TestMemory:
    def test_candidates_wait_for_it(self) -> None:
        whole = layout(configured(12), (64, 0))
        assert whole.concurrent == 12
        tight = layout(configured(12), (64, 0), memory=4 * GIB)
        assert 1 <= tight.concurrent < 5
        assert tight.race.memory is not None
        assert tight.concurrent * (tight.race.memory + tight.race.process) <= 4 * GIB
        more = Layout.of(configured(12), nodes((64, 0), memory=4 * GIB), training=GIB)
        assert 1 <= more.concurrent < tight.concurrent

    def test_it_is_counted_on_each_node(self) -> None:
        rich, poor = Node("rich", 16, 0, 64 * GIB), Node("poor", 16, 0, GIB)
        assert Layout.of(configured(12), [rich, poor], training=GIB).concurrent == 6

    def test_too_little_memory_is_reported(self) -> None:
        text = complaint(configured(3), (8, 0), memory=GIB // 4)
        for part in ("a candidate needs 1 x 0.9 GiB", "node 0: 8 CPU cores, 0 GPUs, 0.2 GiB", "race.max_concurrent=1"):
            assert part in text
        assert layout(configured(3, max_concurrent=1), (8, 0), memory=GIB // 4).concurrent == 1

    def test_a_worker_has_a_fixed_fraction_of_its_node(self) -> None:
        found = layout(configured(4), (4, 0), memory=16 * GIB)
        assert found.race.memory == 4 * GIB - found.race.process
        assert found.winner.memory == 16 * GIB - found.winner.process
        assert layout(configured(4), (4, 1), memory=16 * GIB).race.memory is None  # it trains in the GPU's


class TestGpu:
    @pytest.mark.parametrize(
        ("candidates", "trial", "free", "race", "winner", "concurrent"),
        [
            (3, {}, [(32, 4)], (1, 1, 1), (4, 1, 1), 3),
            (3, {}, [(16, 1)], (1, 1, 0.3333), (1, 1, 1), 3),
            (6, {}, [(16, 1)], (1, 1, 0.25), (1, 1, 1), 4),  # four on a GPU, the others wait
            (5, {}, [(16, 2)], (1, 1, 0.3333), (2, 1, 1), 5),  # three on one, two on the other
            (4, {}, [(2, 4)], (1, 0.5, 1), (4, 0.5, 1), 4),  # few cores are shared
            (2, {"workers": 2}, [(8, 4)], (2, 1, 1), (4, 1, 1), 2),
            (3, {"workers": 2}, [(8, 4)], (2, 1, 1), (4, 1, 1), 2),  # workers of one run cannot share a GPU
            (2, {}, [(4, 0.5)], (1, 2, 0), (1, 4, 0), 2),  # a part of a GPU is none
            (4, {}, [(8, 1.5), (8, 0), (8, 1)], (1, 1, 0.5), (2, 1, 1), 4),
            (3, {}, [(64, 0), (2, 4)], (1, 0.5, 1), (4, 0.5, 1), 3),  # cores without a GPU are no help
        ],
    )
    def test_shared(self, candidates: int, trial: Any, free: Any, race: Any, winner: Any, concurrent: int) -> None:
        found = layout(configured(candidates, **trial), *free)
        assert (sizes(found.race), sizes(found.winner), found.concurrent) == (race, winner, concurrent)

    def test_required_but_absent(self) -> None:
        text = complaint(configured(2, use_gpu=True), (8, 0))
        for part in ("trial.use_gpu = true", "set it to false", "node 0: 8 CPU cores, 0 GPUs"):
            assert part in text

    def test_a_fraction_is_of_one_gpu(self) -> None:
        assert Node("", 64, 2, 0).holds(1, 0.4) == 4  # and not 5
        assert Node("", 64, 1.5, 0).holds(1, 0.5) == 3
        assert Node("", 64, 1.5, 0).holds(1, 1) == 1

    @given(
        candidates=st.integers(1, 12),
        free=st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=3),
    )
    def test_concurrent_candidates_fit(self, candidates: int, free: list[tuple[int, int]]) -> None:
        gpus = sum(gpu for _, gpu in free)
        found = layout(configured(candidates), *free)
        assert found.concurrent >= min(candidates, gpus * 4)
        if not gpus:
            return
        assert found.concurrent <= sum(node.holds(found.race.cpus, found.race.gpus) for node in nodes(*free))
        assert found.winner.count == min(gpus, 64)


class TestTooMany:
    @pytest.mark.parametrize(("free", "available"), [((4, 0), 4), ((64, 2), 2)])
    def test_workers_in_the_race(self, free: tuple[float, float], available: int) -> None:
        text = complaint(configured(1, workers=99), free)
        for part in ("trial.workers = 99", f"only {available} workers", "--address", "node 0: "):
            assert part in text

    @pytest.mark.parametrize("free", [(4, 0), (64, 4)])
    def test_workers_of_the_winner(self, free: tuple[float, float]) -> None:
        assert "winner.workers = 5" in complaint(configured(1, winner=5), free)

    def test_more_workers_than_images_in_the_smallest_batch(self) -> None:
        # The batch of 4 cannot be shared by 8 workers: train() refuses it, but only in the middle of the race.
        assert "trial.workers = 8" in complaint(configured(2, smallest=4, workers=8), (16, 0))


class TestResumed:
    def test_workers_and_their_memory_are_kept_if_they_fit(self) -> None:
        before = layout(configured(3), (2, 0), memory=8 * GIB)
        later = Layout.of(configured(3), nodes((3, 0), memory=16 * GIB), before=Layout.read(asdict(before)))
        assert (later.race, later.winner) == (before.race, before.winner)
        fewer = Layout.of(configured(3), nodes((1, 0), memory=16 * GIB), before=before)
        assert (fewer.race, sizes(fewer.winner), fewer.concurrent) == (before.race, (1, 1, 0), 1)
        elsewhere = Layout.of(configured(3, cpus_per_worker=0.25), nodes((0.25, 0)), before=before)
        assert elsewhere.race.cpus < before.race.cpus
