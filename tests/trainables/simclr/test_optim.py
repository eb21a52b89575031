from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from trainables.settings import EncoderSettings, OptimizerSettings
from trainables.simclr import SimCLR, build_optimizer, set_progress
from trainables.simclr.optim import LARS, correct_momentum

NAMES = ("sgd", "lars", "adamw")
progresses = st.floats(0, 1)


def settings(**values: Any) -> OptimizerSettings:
    return OptimizerSettings(**{"learning_rate": 0.8, "base_batch_size": 256, **values})


# --- the learning rate ---


def test_warms_up_linearly_then_falls_along_a_cosine() -> None:
    schedule = settings(warmup=0.2)
    rates = [schedule.learning_rate_at(progress, 256) for progress in (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)]
    cosine = math.sqrt(0.5)  # cos(pi / 4): a quarter and three quarters of the way down
    expected = [0.0, 0.2, 0.4, 0.8, 0.4 * (1 + cosine), 0.4, 0.4 * (1 - cosine), 0.0]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_without_warmup_starts_at_the_peak() -> None:
    assert settings(warmup=0.0).learning_rate_at(0.0, 256) == 0.8
    assert settings(warmup=0.0).learning_rate_at(0.5, 256) == pytest.approx(0.4)


@given(st.floats(0, 0.99), st.integers(2, 100_000), st.sampled_from(["sqrt", "linear", "none"]))
def test_ends_at_zero(warmup: float, batch: int, rule: str) -> None:
    schedule = settings(warmup=warmup, lr_scaling=rule)
    assert schedule.learning_rate_at(1.0, batch) == pytest.approx(0, abs=1e-12)
    assert schedule.learning_rate_at(1.5, batch) == schedule.learning_rate_at(1.0, batch)


@given(st.floats(0, 0.99), progresses, progresses)
def test_rises_in_the_warmup_and_falls_after_it(warmup: float, one: float, other: float) -> None:
    schedule = settings(warmup=warmup)
    early, late = sorted((one, other))
    before, after = schedule.learning_rate_at(early, 256), schedule.learning_rate_at(late, 256)
    if late <= warmup:
        assert before <= after + 1e-12
    elif early >= warmup:
        assert before >= after - 1e-12
    assert 0 <= before <= 0.8 + 1e-12


@pytest.mark.parametrize(("rule", "power"), [("sqrt", 0.5), ("linear", 1.0), ("none", 0.0)])
@given(progress=progresses, batch=st.integers(2, 100_000))
def test_follows_the_learning_rate_scaling(rule: str, power: float, progress: float, batch: int) -> None:
    schedule = settings(lr_scaling=rule)
    at_base = schedule.learning_rate_at(progress, 256)
    assert schedule.learning_rate_at(progress, batch) == pytest.approx(at_base * (batch / 256) ** power, rel=1e-12)


def test_square_root_is_the_default_scaling() -> None:
    assert OptimizerSettings().lr_scaling == "sqrt"
    assert settings().learning_rate_at(0.05, 1024) == pytest.approx(2 * 0.8)


@given(st.lists(st.tuples(progresses, st.integers(2, 4096)), min_size=2, max_size=6))
def test_the_rate_is_a_pure_function(asked: list[tuple[float, int]]) -> None:
    schedule = settings()
    forwards = [schedule.learning_rate_at(*question) for question in asked]
    backwards = [schedule.learning_rate_at(*question) for question in reversed(asked)]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("name", NAMES)
def test_set_progress_reaches_every_group(name: str) -> None:
    chosen = settings(name=name)
    optimizer = build_optimizer(chosen, network())
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    rate = set_progress(optimizer, chosen, 0.3, 64)
    assert rate == chosen.learning_rate_at(0.3, 64) > 0
    assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]


@pytest.mark.parametrize(
    "wrong",
    [{"name": "adam"}, {"lr_scaling": "cubic"}, {"lr": 0.1}, {"learning_rate": 0}, {"warmup": 1}, {"momentum": 1}],
)
def test_refuses_invalid_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        OptimizerSettings(**wrong)


# --- groups ---


def network() -> SimCLR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SimCLR(EncoderSettings(width=8, depth=1, projection_hidden=6, projection_features=3), 3)


def split(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns weights of layers and all other parameters, by their modules."""
    layers, others = {}, {}
    for path, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            is_layer = isinstance(module, (nn.Conv2d, nn.Linear)) and name == "weight"
            (layers if is_layer else others)[f"{path}.{name}"] = p
    return layers, others


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group(name: str) -> None:
    model = network()
    weights, others = build_optimizer(settings(name=name), model).param_groups
    layers, rest = split(model)
    assert {id(p) for p in weights["params"]} == {id(p) for p in layers.values()}
    assert {id(p) for p in others["params"]} == {id(p) for p in rest.values()}
    assert len(weights["params"]) + len(others["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(("name", "shrinkage"), [("sgd", 1 - 0.5 * 0.1), ("adamw", 1 - 0.5 * 0.1)])
def test_only_weights_decay(name: str, shrinkage: float) -> None:
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)  # no zeros, which decay could not show in
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = build_optimizer(settings(name=name, weight_decay=0.1), model)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    layers, others = split(model)
    for key, p in layers.items():
        torch.testing.assert_close(p.detach(), before[key] * shrinkage)
    for key, p in others.items():
        assert torch.equal(p, before[key]), key


def test_lars_neither_decays_nor_adapts_biases_and_norms() -> None:
    model = network().double()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    optimizer = build_optimizer(settings(name="lars", weight_decay=0.1), model)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    layers, others = split(model)
    for key, p in others.items():
        torch.testing.assert_close(p.detach(), before[key] - 0.5 * p.grad, rtol=0, atol=1e-12)
    for key, p in layers.items():
        w, g = before[key], p.grad
        local = 1e-3 * w.norm() / (g.norm() + 0.1 * w.norm())
        torch.testing.assert_close(p.detach(), w - 0.5 * local * (g + 0.1 * w), rtol=0, atol=1e-12)


def test_momentum_reaches_each_optimizer() -> None:
    for name in ("sgd", "lars"):
        optimizer = build_optimizer(settings(name=name, momentum=0.7), network())
        assert [group["momentum"] for group in optimizer.param_groups] == [0.7, 0.7], name
    adamw = build_optimizer(settings(name="adamw", momentum=0.7), network())
    assert [group["betas"] for group in adamw.param_groups] == [(0.7, 0.999)] * 2


def test_sgd_follows_its_recursion() -> None:
    layer = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = build_optimizer(settings(momentum=0.5, weight_decay=0.1), layer)
    weight, velocity = 1.0, 0.0
    for rate, gradient in [(0.1, 1.0), (0.4, -2.0), (0.2, 0.5)]:
        layer.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        velocity = 0.5 * velocity + gradient + 0.1 * weight
        weight -= rate * velocity
        assert float(layer.weight.detach()) == pytest.approx(weight, abs=1e-12)


# --- LARS ---


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def lars_step(optimizer: LARS, p: nn.Parameter, rate: float, gradient: tuple[float, ...]) -> list[float]:
    optimizer.param_groups[0]["lr"] = rate
    p.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
    values: list[float] = p.detach().tolist()
    return values


def test_lars_step_by_step() -> None:
    """You et al. 2017, algorithm 1, with trust 0.001, momentum 0.9 and decay 0.1."""
    p = parameter(3.0, 4.0)
    optimizer = LARS([{"params": [p], "weight_decay": 0.1}], momentum=0.9)
    # |w| = 5, |g| = 1: local rate 0.001 * 5 / (1 + 0.5) = 1/300; v = 3/300 (0.6 + 0.3, 0.8 + 0.4) = (0.009, 0.012)
    assert lars_step(optimizer, p, 3.0, (0.6, 0.8)) == pytest.approx([2.991, 3.988], abs=1e-12)
    # |w| = 4.985, |g| = 2: local rate 0.001 * 4.985 / (2 + 0.4985) = 0.0019951971...; with the new rate 1.5:
    # v = 0.9 (0.009, 0.012) + 1.5 * 0.0019951971 (-1.6 + 0.2991, 1.2 + 0.3988) = (0.0042066721, 0.0155848817)
    assert lars_step(optimizer, p, 1.5, (-1.6, 1.2)) == pytest.approx([2.9867933279, 3.9724151183], abs=1e-9)


def test_lars_steps_are_invariant_to_the_gradients_scale() -> None:
    for scale in (1e-6, 1.0, 1e6):
        p = parameter(3.0, 4.0)
        lars_step(LARS([p]), p, 2.0, (scale, -scale))
        moved = p.detach() - torch.tensor([3.0, 4.0], dtype=torch.float64)
        assert float(moved.norm()) == pytest.approx(2.0 * 1e-3 * 5.0)


def test_lars_allocates_its_velocities_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    made: list[Tensor] = []
    monkeypatch.setattr(torch, "zeros_like", lambda p: made.append(p) or torch.zeros(p.shape))
    optimizer = LARS(weights)
    for _ in range(4):
        for p in weights:
            p.grad = torch.ones(2)
        optimizer.step()
    assert len(made) == 3


def test_lars_with_zero_norms_equals_sgd() -> None:
    p = parameter(0.0, 0.0)
    assert lars_step(LARS([p]), p, 2.0, (1.0, -0.5)) == [-2.0, 1.0]
    p = parameter(1.0, 2.0)
    assert lars_step(LARS([p]), p, 2.0, (0.0, 0.0)) == [1.0, 2.0]


# --- another batch size ---


@pytest.mark.parametrize(("rule", "ratio"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_momentum_correction_step_by_step(rule: str, ratio: float) -> None:
    """Goyal et al. 2017, remark 3: v <- m (rate' / rate) v + rate' g, in both forms, the batch four times larger.

    SGD multiplies its velocity by the rate of the step and needs no correction; LARS (here without a trust ratio, hence
    plain momentum in the papers' form) holds the rate in its velocity and does.
    """
    chosen = settings(lr_scaling=rule, momentum=0.5, learning_rate=0.1, warmup=0.0)
    one, other = parameter(1.0), parameter(1.0)
    sgd = torch.optim.SGD([one], lr=0.0, momentum=0.5)
    lars = LARS([{"params": [other], "adapt": False}], momentum=0.5)
    weight, velocity = 1.0, 0.0
    rates = [chosen.learning_rate_at(0.0, batch) for batch in (64, 64, 256, 256)]
    assert rates[2] / rates[1] == pytest.approx(ratio)
    for step, (rate, gradient) in enumerate(zip(rates, (1.0, -2.0, 0.5, 3.0), strict=True)):
        if step == 2:
            for optimizer in (sgd, lars):
                correct_momentum(optimizer, chosen, 64, 256)
        velocity = 0.5 * (ratio if step == 2 else 1.0) * velocity + rate * gradient
        weight -= velocity
        assert lars_step(lars, other, rate, (gradient,)) == pytest.approx([weight], abs=1e-12)
        sgd.param_groups[0]["lr"] = rate
        one.grad = torch.tensor([gradient], dtype=torch.float64)
        sgd.step()
        assert one.detach().tolist() == pytest.approx([weight], abs=1e-12)


def test_momentum_correction_does_not_change_adamw() -> None:
    p = parameter(1.0)
    optimizer = torch.optim.AdamW([p], lr=0.1)
    p.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    before = {name: value.clone() for name, value in optimizer.state[p].items()}
    correct_momentum(optimizer, settings(lr_scaling="linear"), 64, 256)
    assert {name: float(value) for name, value in optimizer.state[p].items()} == {
        name: float(value) for name, value in before.items()
    }


def test_lars_skips_parameters_without_gradient() -> None:
    p, other = parameter(1.0), parameter(1.0)
    optimizer = LARS([p, other])
    lars_step(optimizer, p, 2.0, (1.0,))
    assert float(other.detach()) == 1.0
    assert float(p.detach()) < 1.0


def test_lars_resumes_from_its_state() -> None:
    one, other = parameter(3.0, 4.0), parameter(3.0, 4.0)
    straight, first = LARS([one], momentum=0.5), LARS([other], momentum=0.5)
    for optimizer, p in ((straight, one), (first, other)):
        lars_step(optimizer, p, 1.0, (1.0, 2.0))
    second = LARS([other], momentum=0.1)
    second.load_state_dict(first.state_dict())
    assert lars_step(second, other, 1.0, (2.0, 1.0)) == lars_step(straight, one, 1.0, (2.0, 1.0))
