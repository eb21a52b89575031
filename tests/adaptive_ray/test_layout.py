"""How a cluster's devices are shared between candidates; pure arithmetic, no Ray."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_ray.config import ExperimentConfig, parse_config
from adaptive_ray.errors import UserError
from adaptive_ray.layout import Layout, Workers
from schedulers import Candidate


def configured(candidates: int = 3, *, stretch: Any = "auto", smallest: int = 64, **trial: Any) -> ExperimentConfig:
    return parse_config(
        {
            "dataset": {"name": "mnist5k"},
            "candidates": [smallest * 2**power for power in range(candidates)],
            "budget": {"epochs": 20},
            "trial": trial,
            "stretch": {"workers": stretch},
        }
    )


def complaint(config: ExperimentConfig, *, cpus: float, gpus: float) -> str:
    with pytest.raises(UserError) as caught:
        Layout.of(config, cpus=cpus, gpus=gpus)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestCpu:
    def test_a_core_each_where_there_are_enough(self) -> None:
        assert Layout.of(configured(3), cpus=8, gpus=0) == Layout(Workers(1, 1, 0), Workers(8, 1, 0))

    def test_three_candidates_share_two_cores(self) -> None:
        layout = Layout.of(configured(3), cpus=2, gpus=0)
        assert layout.race == Workers(1, 0.5, 0)
        assert layout.stretch == Workers(2, 1, 0)

    def test_a_single_core(self) -> None:
        assert Layout.of(configured(4), cpus=1, gpus=0) == Layout(Workers(1, 0.25, 0), Workers(1, 1, 0))

    def test_several_workers_a_candidate(self) -> None:
        layout = Layout.of(configured(2, workers=4), cpus=4, gpus=0)
        assert layout.race == Workers(4, 0.5, 0)
        assert layout.stretch == Workers(4, 1, 0)

    def test_several_cores_a_worker(self) -> None:
        layout = Layout.of(configured(2, cpus=4), cpus=16, gpus=0)
        assert layout == Layout(Workers(1, 4, 0), Workers(4, 4, 0))
        assert layout.race.threads == 4

    def test_threads_of_a_share_of_a_core(self) -> None:
        assert Layout.of(configured(3), cpus=2, gpus=0).race.threads == 1

    def test_stretch_as_configured(self) -> None:
        assert Layout.of(configured(3, stretch=3), cpus=8, gpus=0).stretch.count == 3

    def test_no_more_workers_than_images_in_the_smallest_batch(self) -> None:
        assert Layout.of(configured(2, smallest=4), cpus=32, gpus=0).stretch.count == 4

    def test_workers_share_the_batch_and_not_the_update(self) -> None:
        config = configured(1, smallest=64).model_copy(update={"candidates": [Candidate(4, 16), Candidate(64)]})
        assert Layout.of(config, cpus=32, gpus=0).stretch.count == 4

    def test_gpus_are_left_alone_on_request(self) -> None:
        assert Layout.of(configured(2, gpu=False), cpus=4, gpus=8) == Layout(Workers(1, 1, 0), Workers(4, 1, 0))

    @given(
        candidates=st.integers(1, 8),
        workers=st.integers(1, 8),
        each=st.sampled_from([0.5, 1, 2, 3]),
        cpus=st.integers(1, 64),
    )
    def test_all_candidates_fit_at_the_same_time(self, candidates: int, workers: int, each: float, cpus: int) -> None:
        config = configured(candidates, workers=workers, cpus=each)
        if workers > int(cpus / each):
            assert f"trial.workers = {workers}" in complaint(config, cpus=cpus, gpus=0)
            return
        layout = Layout.of(config, cpus=cpus, gpus=0)
        assert layout.race.count == workers
        assert 0 < layout.race.cpus <= each
        assert candidates * workers * layout.race.cpus <= cpus * (1 + 1e-9)
        assert layout.stretch.count * layout.stretch.cpus <= cpus
        assert layout.stretch.count >= 1
        assert layout.race.gpus == layout.stretch.gpus == 0


class TestGpu:
    def test_one_each(self) -> None:
        layout = Layout.of(configured(3), cpus=32, gpus=4)
        assert layout == Layout(Workers(1, 1, 1), Workers(4, 1, 1))

    def test_candidates_share_a_gpu(self) -> None:
        layout = Layout.of(configured(3), cpus=16, gpus=1)
        assert layout.race == Workers(1, 1, pytest.approx(1 / 3))
        assert layout.stretch == Workers(1, 1, 1)

    def test_uneven_sharing(self) -> None:
        # 5 candidates on 2 GPUs: three on one, two on the other
        assert Layout.of(configured(5), cpus=16, gpus=2).race.gpus == pytest.approx(1 / 3)

    def test_few_cores_are_shared(self) -> None:
        layout = Layout.of(configured(4), cpus=2, gpus=4)
        assert layout.race == Workers(1, 0.5, 1)
        assert layout.stretch == Workers(4, 0.5, 1)

    def test_several_workers_a_candidate(self) -> None:
        layout = Layout.of(configured(2, workers=2), cpus=8, gpus=4)
        assert layout == Layout(Workers(2, 1, 1), Workers(4, 1, 1))

    def test_workers_of_one_run_cannot_share_a_gpu(self) -> None:
        text = complaint(configured(3, workers=2), cpus=8, gpus=4)
        for part in ("trial.workers = 2", "3 candidates need 6 GPUs", "has 4"):
            assert part in text

    def test_required_but_absent(self) -> None:
        text = complaint(configured(2, gpu=True), cpus=8, gpus=0)
        assert "trial.gpu = true" in text
        assert "trial.gpu=false" in text

    def test_a_part_of_a_gpu_is_none(self) -> None:
        assert Layout.of(configured(2), cpus=4, gpus=0.5).race.gpus == 0

    @given(candidates=st.integers(1, 8), gpus=st.integers(1, 8), cpus=st.integers(1, 64))
    def test_all_candidates_fit_at_the_same_time(self, candidates: int, gpus: int, cpus: int) -> None:
        layout = Layout.of(configured(candidates), cpus=cpus, gpus=gpus)
        fitting = gpus * int(1 / layout.race.gpus + 1e-9)  # a worker's share lies on one GPU
        assert fitting >= candidates
        assert candidates * layout.race.cpus <= cpus * (1 + 1e-9)
        assert layout.stretch.count * layout.stretch.cpus <= cpus * (1 + 1e-9)
        assert layout.stretch.count <= gpus


class TestTooMany:
    @pytest.mark.parametrize(("cpus", "gpus", "available"), [(4, 0, 4), (64, 2, 2)])
    def test_workers_in_the_race(self, cpus: int, gpus: int, available: int) -> None:
        text = complaint(configured(1, workers=99), cpus=cpus, gpus=gpus)
        assert "trial.workers = 99" in text
        assert f"for {available} workers" in text
        assert "--address" in text

    @pytest.mark.parametrize(("cpus", "gpus"), [(4, 0), (64, 4)])
    def test_workers_of_the_stretch(self, cpus: int, gpus: int) -> None:
        assert "stretch.workers = 5" in complaint(configured(1, stretch=5), cpus=cpus, gpus=gpus)

    def test_cores_of_a_worker(self) -> None:
        text = complaint(configured(1, cpus=8), cpus=4, gpus=0)
        assert "for 0 workers" in text
        assert "4 CPU cores" in text

    def test_more_workers_than_images_in_the_smallest_batch(self) -> None:
        # The batch of 4 cannot be shared by 8 workers: train() refuses it, but only in the middle of the race.
        text = complaint(configured(2, smallest=4, workers=8), cpus=16, gpus=0)
        assert "trial.workers = 8" in text
