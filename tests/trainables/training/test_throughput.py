"""Measuring the throughput of a run leaves it unchanged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainables.runs import CPU, Reports, assert_equal, data, small, without_clocks
from trainables.settings import TrainSettings
from trainables.training.loop import train
from trainables.training.run import Run
from trainables.training.throughput import measure_throughput

PICTURES = replace(data(), strata=np.repeat([0, 1, 2], [20, 14, 6]))


def final(reports: Reports) -> dict[str, Any]:
    return {**without_clocks(reports.state()), "swapping": None}  # a policy stores the seconds of its reports


def measured(settings: dict[str, Any], folder: Path, resume_from: Path | None = None) -> tuple[Reports, list[float]]:
    reports, speeds = Reports(folder), []
    train(
        settings,
        PICTURES,
        reports,
        resume_from,
        device=CPU,
        on_ready=lambda run: speeds.append(measure_throughput(run, seconds=0.05)),
    )
    return reports, speeds


@pytest.mark.parametrize(
    "chosen",
    [
        {"optimizer": {"name": "adamw", "learning_rate": 0.01}},
        {"optimizer": {"name": "lars", "learning_rate": 5.0}},
        {"batch_size": 15, "budget": 150, "evaluate_every": 40, "accumulation": 2},
        {"sample_weights": {"mode": "batch"}},
        {"information": {"until": "information", "alpha": 2.2}, "batch_size": 9, "budget": 150},
        {"swap": {"mode": "rotate", "candidates": [{"batch_size": 16}, {"batch_size": 8}], "turn": 32}},
    ],
    ids=str,
)
def test_training_is_equal_bit_for_bit(chosen: dict[str, Any], tmp_path: Path) -> None:
    settings = small(**chosen)
    plain = Reports(tmp_path / "plain")
    train(settings, PICTURES, plain, device=CPU)
    reports, speeds = measured(settings, tmp_path / "measured")
    assert speeds[0] > 0
    for one, other in zip(reports.metrics, plain.metrics, strict=True):
        assert_equal(without_clocks(one), without_clocks(other))
    assert_equal(final(reports), final(plain))
    rest, speeds = measured(settings, tmp_path / "rest", plain.folder(1))
    assert speeds[0] > 0
    assert_equal(final(rest), final(plain))


class NoGraphs:
    """Fails when it is asked for a CUDA graph."""

    def __contains__(self, kind: tuple[int, bool]) -> bool:
        raise LookupError(kind)

    def lacks(self, images: int, repeats: bool) -> bool:
        raise LookupError(images)


def test_one_of_several_workers_is_measured_without_graphs() -> None:
    run = Run(TrainSettings.model_validate(small()), data(), CPU)
    graphs: Any = NoGraphs()
    run.step.gradients._graphs = graphs
    with pytest.raises(LookupError):
        measure_throughput(run, seconds=0.05)
    assert measure_throughput(run, seconds=0.05, graphs=False) > 0
    assert run.step.gradients._graphs is graphs


def test_counts_the_images_of_the_timed_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a step of known duration, the throughput is known; training seconds do not count the measurement."""
    clock, speeds = [0.0], []

    def measure(run: Run) -> None:
        step = type(run.step).__call__

        def slow(self: Any, update: Any) -> torch.Tensor:
            clock[0] += 0.25
            return step(self, update)

        with monkeypatch.context() as patched:
            patched.setattr(type(run.step), "__call__", slow)
            speeds.append(measure_throughput(run, seconds=5.0, clock=lambda: clock[0]))
            before = clock[0]
            speeds.append(measure_throughput(run, seconds=0.1, clock=lambda: clock[0]))
            assert clock[0] == before + 0.25 * 3  # of an update that takes longer, two warm up and one counts
        assert run.state.seconds == 0.0
        assert run.state.samples == 0

    train(small(), data(), Reports(), device=CPU, on_ready=measure)
    assert speeds == [16 / 0.25] * 2
    assert clock[0] - 0.75 == 0.25 * (1 + 4 + 5 * 4)  # warm-up, and five parts of a second
