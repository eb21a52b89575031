from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainables.gpu import no_waiting
from tests.trainables.runs import Reports, data, small
from trainables.settings import TrainSettings
from trainables.training.loop import train
from trainables.training.run import Run

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # of torch.compile's own imports
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # torch.compile recommends it
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WAYS = ("none", "graphs", "compiled")


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """Makes convolutions deterministic, in float32."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def prepared(way: str, **chosen: Any) -> Run:
    accelerate = "auto" if way == "compiled" else way
    settings = TrainSettings.model_validate(small(accelerate=accelerate, **chosen))
    run = Run(settings, data(), torch.device("cuda"))
    if way == "compiled":
        run.step.compile()
    run.step.gradients.prepare([range(0, 16, 16), range(32, 48, 16)], 16)  # the latter crosses the end of an epoch
    return run


def weights(run: Run) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in run.state.model.state_dict().items()}


@pytest.mark.parametrize(
    ("way", "chosen"),
    [
        ("graphs", {}),
        ("graphs", {"accumulation": 2}),
        ("graphs", {"loss": "dcl"}),
        ("graphs", {"augment": {"blur": 0.5}}),
        ("graphs", {"optimizer": {"name": "lars"}}),
        ("compiled", {"accumulation": 2, "augment": {"blur": 0.5}}),
    ],
    ids=str,
)
def test_a_run_with_cuda_graphs_equals_the_eager_run(way: str, chosen: dict[str, Any]) -> None:
    plain, captured = prepared("none", **chosen), prepared(way, **chosen)
    assert captured.step.gradients._graphs is not None
    assert all((16, repeats) in captured.step.gradients._graphs for repeats in (False, True))
    torch.testing.assert_close(weights(captured), weights(plain), rtol=0, atol=0)  # capturing trains nothing
    for samples in (16, 128):
        plain.train_until(samples)
        captured.train_until(samples)
        tolerance = 1e-4 if samples == 16 else 1e-2
        torch.testing.assert_close(weights(captured), weights(plain), rtol=tolerance, atol=tolerance)
        one, other = plain.evaluate(), captured.evaluate()
        assert other.train_loss == pytest.approx(one.train_loss, rel=tolerance)
        assert other.reference_loss == pytest.approx(one.reference_loss, rel=tolerance)


def test_a_batch_size_is_captured_once_across_swaps(tmp_path: Path) -> None:
    candidates = ({"batch_size": 16}, {"batch_size": 8}, {"batch_size": 24})
    chosen = {"swap": {"mode": "rotate", "candidates": candidates, "turn": 32}, "budget": 512, "evaluate_every": 32}
    reports = {}
    for way in ("none", "graphs"):
        reports[way] = Reports()
        train(small(accelerate=way, **chosen), data(), reports[way], device=torch.device("cuda"))
    sizes = [[metrics["batch_size"] for metrics in of.metrics] for of in reports.values()]
    assert sizes[0] == sizes[1]
    assert len(set(sizes[0])) == 3
    for one, other in zip(reports["none"].metrics[:4], reports["graphs"].metrics[:4], strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)


def test_graphs_of_another_run_can_be_freed() -> None:
    plain, captured, other = prepared("none"), prepared("graphs"), prepared("graphs")
    other.train_until(16)
    captured.train_until(16)
    del other
    gc.collect()
    captured.step.gradients.prepare([range(0, 24, 24)], 24)  # a capture frees unused memory
    assert captured.step.gradients._graphs is not None
    assert all((size, False) in captured.step.gradients._graphs for size in (16, 24))
    captured.train_until(64)
    plain.train_until(64)
    torch.testing.assert_close(weights(captured), weights(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_does_not_synchronise(way: str) -> None:
    run = prepared(way, precision="auto")
    run.train_until(32)
    updates = run.step.updates_until(96)
    with no_waiting():
        for update in updates:
            run.step(update)


SYNCHRONISES = """
import torch
from tests.trainables.runs import data, small
from trainables.training.run import Run
from trainables.settings import TrainSettings
run = Run(TrainSettings.model_validate(small(accelerate="graphs")), data(), torch.device("cuda"))
loss = run.step.gradients.loss
def reads_from_the_device(*args, **options):
    value = loss(*args, **options)
    assert value.item() > 0
    return value
run.step.gradients.loss = reads_from_the_device
try:
    run.train_until(32)
except RuntimeError as error:
    print(error)
"""


def test_a_failed_capture_names_the_setting_to_change() -> None:
    done = subprocess.run([sys.executable, "-c", SYNCHRONISES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("a step with 16 images cannot be captured")
    assert "set accelerate: none" in done.stdout


@pytest.mark.parametrize("chosen", [{"sample_weights": {"mode": "batch"}}, {"micro_batch": 4}], ids=str)
def test_steps_that_change_are_not_captured(chosen: dict[str, Any]) -> None:
    plain, run = prepared("none", **chosen), prepared("graphs", **chosen)
    for each in (plain, run):
        each.train_until(64)
    torch.testing.assert_close(weights(run), weights(plain), rtol=1e-3, atol=1e-3)


def test_a_run_with_cuda_graphs_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    reports = Reports(tmp_path)
    settings = small(accelerate="graphs")
    train(settings, data(), reports, device=torch.device("cuda"))
    resumed = Reports()
    train(settings, data(), resumed, reports.folder(1), device=torch.device("cuda"))
    for one, other in zip(reports.metrics[2:], resumed.metrics, strict=True):
        assert other["samples_seen"] == one["samples_seen"]
        assert other["reference_loss"] == pytest.approx(one["reference_loss"], rel=1e-3)
