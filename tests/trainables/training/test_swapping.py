"""Tests swaps of the candidate during a run: they equal a resume with another batch size, on all workers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from schedulers import Candidate
from schedulers.in_run.policy import SwapDecision
from tests.trainables.runs import CPU, UNCHANGED, Reports, assert_equal, data, double_simclr, run, small, without_clocks
from tests.trainables.workers import Workers
from trainables.batches import ImageFiles
from trainables.data import TrainingData
from trainables.settings import SwapSettings, TrainSettings
from trainables.simclr import SimCLR
from trainables.training.checkpoint import CHECKPOINT_FILE
from trainables.training.loop import train
from trainables.training.run import Run

#: Samples at which ``Planned`` changes the candidate, and to which. Their reports come at 32, 64, 112, 136, 160 ...
PLAN = {64: Candidate(24), 112: Candidate(8, 3), 160: Candidate(16), 224: Candidate(30)}
#: The batches of the whole run.
BATCHES = [16] * 4 + [24] * 2 + [8] * 6 + [16] * 4 + [30] * 2


class Planned:
    """Policy that follows ``PLAN``."""

    def __init__(self, candidates: Sequence[Candidate], **_: Any) -> None:
        self.current = candidates[0]
        self._reports: list[tuple[float, float, float]] = []

    def report(self, samples: float, loss: float, seconds: float) -> SwapDecision | None:
        self._reports.append((samples, loss, seconds))
        if samples not in PLAN:
            return None
        before, self.current = self.current.key, PLAN[int(samples)]
        return SwapDecision(samples, before, self.current.key, "swap", "as planned", None, loss, math.nan, {})

    def state(self) -> dict[str, Any]:
        return {"reports": self._reports}

    def restore(self, state: dict[str, Any]) -> None:
        for report in state["reports"]:
            self.report(*report)


def planned(**chosen: Any) -> dict[str, Any]:
    swap = {"candidates": [{"batch_size": 16}, *({"batch_size": c.batch_size, "accumulation": c.accumulation}
            for c in PLAN.values() if c != Candidate(16))]}  # fmt: skip
    return small(budget=256, swap=swap, **chosen)


def run_as_planned(settings: dict[str, Any], folder: Path, resume_from: Path | None = None, **more: Any) -> Reports:
    with patch("trainables.training.swapping.SwapOnDeviation", Planned):
        return run(settings, folder, resume_from, **more)


class StopRunError(Exception):
    pass


def run_by_hand(folder: Path, **chosen: Any) -> Reports:
    """Stops at every change of ``PLAN`` and resumes from the checkpoint with another batch size."""
    reports = Reports(folder)
    candidate, start = Candidate(16), None
    for stop, following in [*PLAN.items(), (None, None)]:

        def report(metrics: dict[str, Any], checkpoint: str | None = None, stop: int | None = stop) -> None:
            reports(metrics, checkpoint)
            if metrics["samples_seen"] == stop:
                raise StopRunError

        own = {"batch_size": candidate.batch_size, "accumulation": candidate.accumulation}
        try:
            train(small(budget=256, **own, **chosen), data(), report, start, device=CPU)
        except StopRunError:
            assert following is not None
            candidate, start = following, reports.folder(-1)
    return reports


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"optimizer": {"name": "lars", "learning_rate": 5.0, "lr_scaling": "linear"}},
        {"optimizer": {"name": "adamw", "learning_rate": 0.01}},
        {"micro_batch": 6},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_a_swap_equals_a_resume_with_another_batch_size_bit_for_bit(tmp_path: Path, chosen: dict[str, Any]) -> None:
    swapped, by_hand = run_as_planned(planned(**chosen), tmp_path / "swapped"), run_by_hand(tmp_path / "hand", **chosen)
    assert swapped.column("samples_seen") == [32, 64, 112, 136, 160, 192, 224, 284]
    for here, there in zip(swapped.metrics, by_hand.metrics, strict=True):
        decided = {"decision", "deviation", "forecast", "forecast_std"}
        assert_equal(without_clocks({k: v for k, v in here.items() if k not in decided}), without_clocks(there))
    last, other = swapped.state(), by_hand.state()
    for part in ("model", "ema", "optimizer"):
        assert_equal(last[part], other[part], part)


def test_reports_name_the_trained_candidate_and_decisions_the_next_one(tmp_path: Path) -> None:
    reports = run_as_planned(planned(), tmp_path)
    assert reports.column("batch_size") == [16, 16, 24, 8, 8, 16, 16, 30]
    assert reports.column("accumulation") == [1, 1, 1, 3, 3, 1, 1, 1]
    for metrics in reports.metrics:
        chance = math.log(2 * metrics["batch_size"] - 1)
        assert metrics["train_loss_above_chance"] == pytest.approx(metrics["train_loss"] - chance)
    decided = {metrics["samples_seen"]: metrics["decision"] for metrics in reports.metrics if "decision" in metrics}
    assert {samples: decision["chosen"] for samples, decision in decided.items()} == {
        samples: candidate.key for samples, candidate in PLAN.items()
    }
    assert json.loads(json.dumps(decided[64])) == decided[64]
    settings = TrainSettings.model_validate(small())
    assert reports.metrics[2]["learning_rate"] == settings.optimizer.learning_rate_at((112 - 12) / 256, 24)
    assert reports.metrics[3]["learning_rate"] == settings.optimizer.learning_rate_at((136 - 12) / 256, 24)


@pytest.mark.parametrize("stopped", range(7))
def test_resumes_bit_for_bit_on_both_sides_of_a_swap(tmp_path: Path, stopped: int) -> None:
    settings = planned(optimizer={"name": "lars", "learning_rate": 5.0, "lr_scaling": "linear"})
    whole = run_as_planned(settings, tmp_path / "whole")
    rest = run_as_planned(settings, tmp_path / "rest", whole.folder(stopped))
    for here, there in zip(rest.metrics, whole.metrics[stopped + 1 :], strict=True):
        assert_equal(without_clocks(here), without_clocks(there))
    last, other = rest.state(), whole.state()
    for part in ("model", "ema", "optimizer", "batch_size", "accumulation"):
        assert_equal(last[part], other[part], part)


def test_image_files_are_prefetched_across_swaps(tmp_path: Path) -> None:
    pictures = data()
    paths = [tmp_path / f"{number:02d}.png" for number in range(len(pictures.images))]
    for path, image in zip(paths, pictures.images[:], strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    files = TrainingData(ImageFiles(paths, 12, decoders=2), pictures.reference)
    streamed = run_as_planned(planned(), tmp_path / "files", data=files)
    in_memory = run_as_planned(planned(), tmp_path / "memory")
    assert_equal(streamed.state()["model"], in_memory.state()["model"])


def test_the_micro_batch_is_chosen_for_the_largest_candidate() -> None:
    asked = []

    def micro_batch(model: Any, shape: Any, limit: int, *_: Any) -> int:
        asked.append(limit)
        return 12

    cut = patch("trainables.training.step.largest_micro_batch", micro_batch)
    with cut, patch("trainables.training.swapping.SwapOnDeviation", Planned):
        reports = run(planned())
    assert asked == [30]
    assert reports.column("micro_batch") == [12, 12, 12, 8, 8, 12, 12, 12]


# --- several workers ---


def planned_run_of_a_worker(chosen: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any], list[int]]:
    """Returns reports, checkpoints and the number of images of every forward pass, in float64."""
    metrics, states, sizes = [], [], []

    def simclr(*arguments: Any, **keywords: Any) -> SimCLR:
        def hook(module: SimCLR, inputs: Any) -> None:
            if next(module.parameters()).requires_grad:  # not the EMA model
                sizes.append(len(inputs[0]) // 2)

        model = double_simclr(*arguments, **keywords)
        model.register_forward_pre_hook(hook)
        return model

    def report(values: dict[str, Any], checkpoint: str | None = None) -> None:
        metrics.append(values)
        states.append(checkpoint and torch.load(Path(checkpoint) / CHECKPOINT_FILE, weights_only=True))

    with (
        patch("trainables.training.swapping.SwapOnDeviation", Planned),
        patch("trainables.training.state.SimCLR", simclr),
    ):
        train(chosen, data(), report, device=CPU)
    return metrics, states, sizes


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_workers_swap_at_the_same_step(workers: Workers, world: int) -> None:
    chosen = planned(micro_batch=64)
    metrics, states, sizes = planned_run_of_a_worker(chosen)
    assert sizes == BATCHES
    parts = workers.run(world, planned_run_of_a_worker, chosen)
    assert [sum(shares) for shares in zip(*(sizes for _, _, sizes in parts), strict=True)] == BATCHES
    for reported, _, _ in parts:
        assert [values["samples_seen"] for values in reported] == [values["samples_seen"] for values in metrics]
    for together, alone in zip(parts[0][0], metrics, strict=True):
        assert together["reference_loss"] == pytest.approx(alone["reference_loss"], abs=1e-10)
    for together, alone in zip(parts[0][1], states, strict=True):
        for part in ("model", "ema"):
            torch.testing.assert_close(together[part], alone[part], rtol=0, atol=1e-10)


# --- every sample once ---

updates = st.tuples(st.integers(2, 40), st.integers(1, 3), st.integers(1, 2))  # batch size, accumulation, steps


@settings(max_examples=20)
@given(stages=st.lists(updates, min_size=1, max_size=5))
def test_every_image_is_seen_once_per_epoch_across_swaps(stages: list[tuple[int, int, int]]) -> None:
    values = np.arange(40, dtype=np.uint8)  # every image has its own colour
    images = np.broadcast_to(values[:, None, None, None], (40, 3, 8, 8)).copy()
    chosen = TrainSettings.model_validate(small(augment=UNCHANGED, budget=10_000, micro_batch=16))
    training, seen = Run(chosen, TrainingData(images, images[:16]), CPU), []
    training.state.model.register_forward_pre_hook(
        lambda module, arguments: (
            seen.extend((arguments[0].chunk(2)[0][:, 0, 0, 0] * 255).round().int().tolist())
            if torch.is_grad_enabled()  # GradCache runs two forward passes
            else None
        )
    )
    for batch_size, accumulation, steps in stages:
        candidate = Candidate(batch_size, accumulation)
        training.state.swap_to(candidate)
        training.train_until(training.state.samples + steps * candidate.images_per_update)
    assert len(seen) == training.state.samples == sum(b * a * steps for b, a, steps in stages)
    epochs = [seen[start : start + 40] for start in range(0, len(seen), 40)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs[:-1])
    assert len(set(epochs[-1])) == len(epochs[-1])


# --- the policies themselves ---


def swapping(mode: str, **chosen: Any) -> dict[str, Any]:
    sizes = [{"batch_size": 8}, {"batch_size": 16}, {"batch_size": 8, "accumulation": 4}]
    return small(budget=640, swap={"mode": mode, "candidates": sizes, **chosen})


ROTATE = swapping("rotate", turn=32)
DEVIATION = swapping("deviation", patience=2, threshold=0.0)


def test_rotate_takes_turns(tmp_path: Path) -> None:
    reports = run(ROTATE, tmp_path)
    used = [
        Candidate(size, count).key
        for size, count in zip(reports.column("batch_size"), reports.column("accumulation"), strict=True)
    ]
    assert used[:6] == ["16", "8", "8x4"] * 2  # starts with the run's own candidate
    chosen = [metrics["decision"]["chosen"] for metrics in reports.metrics]
    assert used[1:] == chosen[:-1]


def test_a_turn_is_one_epoch_by_default() -> None:
    reports = run(swapping("rotate"))  # 40 images, a report every 32
    assert [metrics["samples_seen"] for metrics in reports.metrics if "decision" in metrics][:2] == [64, 128]


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [ROTATE, DEVIATION], ids=["rotate", "deviation"])
def test_a_policy_decides_the_same_after_a_resume(tmp_path: Path, chosen: dict[str, Any]) -> None:
    whole = run(chosen, tmp_path / "whole")
    actions = [metrics["decision"]["action"] for metrics in whole.metrics if "decision" in metrics]
    assert "swap" in actions
    for stopped in range(0, len(whole.metrics) - 1, 3):
        rest = run(chosen, tmp_path / f"rest-{stopped}", whole.folder(stopped))
        for here, there in zip(rest.metrics, whole.metrics[stopped + 1 :], strict=True):
            assert_equal(without_clocks(here), without_clocks(there))
        for part in ("model", "ema", "optimizer"):
            assert_equal(rest.state()[part], whole.state()[part], part)


def test_later_efficiencies_of_a_race_do_not_change_past_decisions(tmp_path: Path) -> None:
    """A resumed run gets the race's current efficiencies, which may differ from the saved ones."""
    then = {"16": (0.5, 0.1), "8": (0.2, 0.1), "8x4": (-0.7, 0.1)}
    now = {"16": (0.5, 0.1), "8": (-0.7, 0.1), "8x4": (0.2, 0.1)}
    whole = run(swapping("deviation", patience=2, threshold=0.0, rates=then), tmp_path / "whole")
    first = next(n for n, metrics in enumerate(whole.metrics) if metrics.get("decision", {}).get("action") == "swap")
    assert whole.metrics[first]["decision"]["chosen"] == "8"  # the next best with the saved efficiencies
    other = swapping("deviation", patience=2, threshold=0.0, rates=now)
    rest = run(other, tmp_path / "rest", whole.folder(first - 1))
    for here, there in zip(rest.metrics, whole.metrics[first:], strict=True):
        assert_equal(without_clocks(here), without_clocks(there))
    assert run(other, tmp_path / "again").metrics[first]["decision"]["chosen"] == "8x4"


def test_the_policys_history_starts_at_the_end_of_the_race(tmp_path: Path) -> None:
    raced = run(small(budget=640, batch_size=8), tmp_path / "race")
    start = raced.folder(1)
    reports = run({**DEVIATION, "batch_size": 8}, tmp_path / "winner", start)
    for number in (0, 5):  # also after a resume
        history = json.loads(reports.state(number)["swapping"])
        assert history["start"] == [64, raced.state(1)["seconds"]]
    again = run({**DEVIATION, "batch_size": 8}, tmp_path / "again", reports.folder(2))
    assert json.loads(again.state()["swapping"])["start"] == [64, raced.state(1)["seconds"]]


def test_without_a_policy_a_run_continues_with_its_own_candidate(tmp_path: Path) -> None:
    swapped = run(ROTATE, tmp_path)
    assert swapped.state(0)["batch_size"] == 8
    rest = run(small(budget=640), resume_from=swapped.folder(0))
    assert set(rest.column("batch_size")) == {16}


# --- refusals ---


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"candidates": [{"batch_size": 16}]}, "candidates"),
        ({"mode": "guess"}, "mode"),
        ({"patience": 1}, "patience"),
        ({"threshold": -1}, "threshold"),
        ({"turn": 0}, "turn"),
        ({"candidates": [{"batch_size": 16}, {"batch_size": 8, "accumulate": 2}]}, "accumulate"),
        ({"pateince": 3}, "pateince"),
    ],
    ids=str,
)
def test_refuses_invalid_settings(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        SwapSettings.model_validate({"candidates": [{"batch_size": 16}, {"batch_size": 8}], **wrong})


def test_a_run_starts_with_one_of_its_candidates() -> None:
    with pytest.raises(ValidationError, match=r"\(8, 16, 8x4\) must include 20"):
        TrainSettings.model_validate({**ROTATE, "batch_size": 20})


def test_every_candidate_must_fit_the_data() -> None:
    chosen = small(swap={"candidates": [{"batch_size": 16}, {"batch_size": 41}]})
    with pytest.raises(ValueError, match=r"41.*40"):
        train(chosen, data(40), Reports(), device=CPU)
