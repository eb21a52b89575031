from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch._inductor.config
import torch.distributed as dist
from torch import Tensor, nn

from schedulers import Candidate
from tests.trainables.images import noise_images
from tests.trainables.runs import CPU, assert_equal, data, small
from tests.trainables.workers import Workers
from trainables.batches import Update
from trainables.settings import TrainSettings
from trainables.simclr import Augment, SimCLR
from trainables.training.compile import Compiled
from trainables.training.run import Run


def curve(x: Tensor) -> Tensor:
    return (x.sin() * 3 + 1).exp().mean()


@pytest.mark.slow
def test_compiled_results_and_gradients_are_equal_at_every_size() -> None:
    fast = Compiled(curve)
    for size in (5, 12, 5):
        x = torch.linspace(-1, 1, size, dtype=torch.float64).requires_grad_()
        values = [function(x) for function in (fast, curve)]
        torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(value, x)[0] for value in values]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


class TinySimCLR(SimCLR):
    """Network in float64 with one block, whose two branches both have batch norms."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        encoder: Any = self.encoder
        encoder.blocks = encoder.blocks[1:2]
        # More than one bucket of DistributedDataParallel, whose first one has 1 MiB.
        self.head = nn.Sequential(nn.Linear(2 * encoder.settings.width, 20_000), nn.ReLU(), nn.Linear(20_000, 6))
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.double())


@pytest.mark.slow
def test_a_compiled_run_equals_the_eager_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.training.state.SimCLR", TinySimCLR)
    runs = [Run(TrainSettings.model_validate(small(accumulation=2)), data(), CPU) for _ in range(2)]
    runs[1].step.gradients.compile()
    assert runs[1].step.gradients.forward is not runs[1].step.parallel
    for run in runs:
        run.train_until(32)
    one, other = (run.evaluate() for run in runs)
    for name in ("train_loss", "reference_loss"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-10)
    for weight, same in zip(*(run.state.model.state_dict().values() for run in runs), strict=True):
        torch.testing.assert_close(weight, same, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_compiled_views_equal_eager_views() -> None:
    augment, images = Augment(12), noise_images(16, 12)
    draw = augment.draw(16, (12, 12), torch.Generator().manual_seed(0))
    expected = augment.views(images, draw.packed())
    torch.testing.assert_close(Compiled(augment.views)(images, draw.packed()), expected, rtol=0, atol=1e-5)


LAYOUTS: dict[str, dict[str, Any]] = {
    "whole batches": {},
    "cut into unequal parts": {"micro_batch": 5},
    "several batches": {"accumulation": 2},
    "weights that change": {"sample_weights": {"mode": "batch"}},
    "shared negatives": {"information": {"until": "information", "alpha": 1.5, "negatives": "shared"}},
}


def run_in_turns(chosen: dict[str, Any], *, compiles: bool) -> tuple[list[bool], Tensor]:
    """Returns for each new shape whether it was compiled before timing started, and the final weights."""
    met: list[bool] = []
    preparing = False

    def like_the_compiler(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        known: set[torch.Size] = set()

        def call(first: Tensor, *rest: Any) -> Tensor:
            if first.shape not in known:
                known.add(first.shape)
                met.append(preparing)
            return function(first, *rest)

        call.failed = False  # type: ignore[attr-defined]
        return call

    settings = TrainSettings.model_validate(small(budget=400, **chosen))
    strata = np.arange(40) % 3
    run = Run(settings, replace(data(), strata=strata), CPU)
    if compiles:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trainables.training.gradients.Compiled", like_the_compiler)
            run.step.gradients.compile()
    augment = run.step.loader.augment
    augment.apply = lambda images, draw: augment.views(images, draw.packed())  # type: ignore[method-assign]  # as on GPUs
    prepare = run.step.prepare

    def prepares(updates: list[Update]) -> None:
        nonlocal preparing
        preparing = True
        prepare(updates)
        preparing = False

    run.step.prepare = prepares  # type: ignore[method-assign]
    for size in (16, 13, 16, 6):
        run.state.swap_to(Candidate(size, settings.accumulation))
        run.train_until(run.state.samples + 30)
    return met, torch.cat([value.double().flatten() for value in run.state.model.state_dict().values()])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_are_compiled_before_timing_starts_without_training(layout: str) -> None:
    met, weights = run_in_turns(LAYOUTS[layout], compiles=True)
    assert all(met)
    # For every batch size: the augmentation, and the network unless the batch is split.
    assert len(met) == (3 if layout in ("cut into unequal parts", "shared negatives") else 6)
    assert torch.equal(weights, run_in_turns(LAYOUTS[layout], compiles=False)[1])


def test_workers_prepare_together(workers: Workers) -> None:
    (met, weights), (_, same) = workers.run(2, partial(run_in_turns, {}, compiles=True))
    assert all(met)
    assert len(met) == 6
    expected = workers.run(2, partial(run_in_turns, {}, compiles=False))[0][1]
    assert torch.equal(weights, same)
    assert torch.equal(weights, expected)


#: Without a compiler, and for a run that others do not know.
BROKEN: dict[str, Any] = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}


def run_of_a_worker(*, compiles: bool, failing: int | None = None) -> dict[str, Any]:
    """Trains four updates on unequal shards, the last two compiled. Returns losses, state and warnings.

    Only rank 0 has measured that compiling pays. Compilation fails on the worker ``failing``.
    """
    rank, losses = dist.get_rank(), []
    optimizer = {"name": "adamw", "learning_rate": 0.01}
    settings = TrainSettings.model_validate(small(batch_size=13, accumulation=2, optimizer=optimizer))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patch.setattr("trainables.training.state.SimCLR", TinySimCLR)
        run = Run(settings, data(), CPU)
        for may_compile in (False, compiles):
            run.step.may_compile = may_compile  # as on a GPU
            run.state.seconds = 1e9 * (rank == 0)
            with torch._inductor.config.patch(BROKEN if rank == failing else {}):
                run.train_until(run.state.samples + 52)
            losses.append(run._interval.mean_loss)
    fast = run.step.gradients.forward is not run.step.parallel
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    state = {**run.state.state_dict(), "seconds": 0}
    texts = [str(each.message) for each in said]
    return {"losses": losses, "state": state, "graphs": graphs, "compiled": fast, "said": texts}


def runs_of_a_worker() -> list[dict[str, Any]]:
    compiling = {"compiles": True}
    return [run_of_a_worker(**chosen) for chosen in ({"compiles": False}, compiling, {**compiling, "failing": 1})]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
def test_compiled_workers_equal_eager_workers(workers: Workers) -> None:
    (eager, _), both, mixed = zip(*workers.run(2, runs_of_a_worker), strict=True)
    for share in (*both, *mixed):
        torch.testing.assert_close(share["losses"], eager["losses"], rtol=0, atol=1e-10)
        torch.testing.assert_close(share["state"], eager["state"], rtol=0, atol=1e-10)  # with the same names
    assert [share["graphs"] for share in both] == [1, 1]  # with the collectives of batch norm
    assert [share["compiled"] for share in (*both, *mixed)] == [True, True, False, False]
    failed = [any("without torch.compile" in text for text in share["said"]) for share in (*both, *mixed)]
    assert failed == [False, False, False, True]
    assert_equal(both[0]["state"], both[1]["state"])
    assert_equal(mixed[0]["state"], mixed[1]["state"])


def test_without_a_compiler_it_warns_once_and_runs_eagerly(recwarn: pytest.WarningsRecorder) -> None:
    with torch._inductor.config.patch(BROKEN):
        fast = Compiled(lambda x: curve(x) + 1)
        for _ in range(2):
            assert torch.equal(fast(torch.ones(4)), curve(torch.ones(4)) + 1)
    said = [str(warning.message) for warning in recwarn.list]  # torch's compiler may warn too
    assert sum("without torch.compile" in text for text in said) == 1


def test_errors_of_the_function_are_raised() -> None:
    def fails(x: Tensor) -> Tensor:
        return x.reshape(7)

    with pytest.warns(UserWarning, match="without torch.compile"), pytest.raises(RuntimeError, match="shape"):
        Compiled(fails)(torch.ones(4))
