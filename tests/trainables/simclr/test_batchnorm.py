from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trainables.workers import Workers
from trainables.batches import shard_rows
from trainables.settings import EncoderSettings
from trainables.simclr import SimCLR
from trainables.simclr.batchnorm import GlobalBatchNorm2d, calibrate

STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_scales(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Sets weights other than ones and zeros, so that missing factors are detected."""
    with torch.no_grad():
        norm.weight.copy_(numbers(norm.num_features, seed=8) + 2)
        norm.bias.copy_(numbers(norm.num_features, seed=9))
    return norm


def steps_of(norm: nn.BatchNorm2d, inputs: Tensor, output_gradients: Tensor) -> dict[str, Tensor]:
    """Runs training steps [steps, b, C, H, W]. Returns all outputs and gradients, and the final state."""
    outputs, by_input = [], []
    for batch, gradient in zip(inputs, output_gradients, strict=True):
        x = batch.clone().requires_grad_()
        y = norm(x)
        y.backward(gradient)
        outputs.append(y.detach())
        by_input.append(x.grad)
    state = {name: getattr(norm, name).detach() for name in STATE}
    gradients = {"by_weight": norm.weight.grad, "by_bias": norm.bias.grad}
    return {"outputs": torch.stack(outputs), "by_input": torch.stack(by_input), **gradients, **state}


def test_equals_batchnorm2d_in_one_process() -> None:
    inputs, gradients = numbers(3, 6, 4, 5, 5) * 3 + 1, numbers(3, 6, 4, 5, 5, seed=1)
    norm, reference = with_scales(GlobalBatchNorm2d(4).double()), with_scales(nn.BatchNorm2d(4).double())
    actual, expected = steps_of(norm, inputs, gradients), steps_of(reference, inputs, gradients)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    assert torch.equal(norm.eval()(inputs[0]), reference.eval()(inputs[0]))


def test_loads_state_dicts_of_batchnorm2d() -> None:
    reference = with_scales(nn.BatchNorm2d(4))
    reference(numbers(8, 4, 3, 3, dtype=torch.float32))
    norm = GlobalBatchNorm2d(4)
    norm.load_state_dict(reference.state_dict())
    x = numbers(2, 4, 3, 3, seed=1, dtype=torch.float32)
    assert torch.equal(norm.eval()(x), reference.eval()(x))


def one_workers_steps(inputs: Tensor, output_gradients: Tensor) -> dict[str, Tensor]:
    """Runs the same steps with a worker's shard of every batch."""
    rows = shard_rows(inputs.shape[1], dist.get_rank(), dist.get_world_size())
    norm = with_scales(GlobalBatchNorm2d(inputs.shape[2]).to(inputs.dtype))
    steps = steps_of(norm, inputs[:, rows], output_gradients[:, rows])
    return {**steps, "in_evaluation": norm.eval()(inputs[0, rows]).detach()}


@pytest.mark.parametrize(("world", "batch"), [(2, 8), (2, 9), (4, 13), (4, 4)])
def test_workers_normalise_by_the_global_batch(workers: Workers, world: int, batch: int) -> None:
    offsets = torch.tensor([0.0, 5.0, -20.0], dtype=torch.float64)[:, None, None]
    inputs = numbers(4, batch, 3, 5, 4) * 2 + offsets
    gradients = numbers(4, batch, 3, 5, 4, seed=1)
    reference = with_scales(nn.BatchNorm2d(3).double())
    expected = steps_of(reference, inputs, gradients)
    expected["in_evaluation"] = reference.eval()(inputs[0]).detach()

    shares = workers.run(world, one_workers_steps, inputs, gradients)
    for name in ("outputs", "by_input"):
        gathered = torch.cat([part[name] for part in shares], dim=1)
        torch.testing.assert_close(gathered, expected[name], rtol=0, atol=1e-10, msg=name)
    gathered = torch.cat([part["in_evaluation"] for part in shares])
    torch.testing.assert_close(gathered, expected["in_evaluation"], rtol=0, atol=1e-10)
    for name in ("by_weight", "by_bias"):
        total = torch.stack([part[name] for part in shares]).sum(0)
        torch.testing.assert_close(total, expected[name], rtol=0, atol=1e-10, msg=name)
    for name in STATE:
        for part in shares:
            torch.testing.assert_close(part[name], expected[name], rtol=0, atol=1e-10, msg=name)
            assert torch.equal(part[name], shares[0][name]), f"{name} differs between workers"


def test_workers_normalise_in_float32(workers: Workers) -> None:
    inputs, gradients = numbers(2, 8, 3, 5, 4) * 2 + 1, numbers(2, 8, 3, 5, 4, seed=1)
    expected = steps_of(with_scales(nn.BatchNorm2d(3).double()), inputs, gradients)
    shares = workers.run(2, one_workers_steps, inputs.float(), gradients.float())
    for name in ("outputs", "by_input"):
        gathered = torch.cat([part[name] for part in shares], dim=1)
        assert gathered.dtype == torch.float32
        torch.testing.assert_close(gathered.double(), expected[name], rtol=0, atol=1e-5, msg=name)


def test_workers_normalise_bfloat16_by_float32_statistics(workers: Workers) -> None:
    x, gradient = numbers(8, 3, 5, 4).bfloat16(), numbers(8, 3, 5, 4, seed=1).bfloat16()
    expected = steps_of(with_scales(nn.BatchNorm2d(3).double()), x[None].double(), gradient[None].double())
    shares = workers.run(2, mixed_precision_step, x, gradient)
    for index, name in enumerate(("outputs", "by_input")):
        gathered = torch.cat([part[index] for part in shares])
        assert gathered.dtype == torch.bfloat16
        # Half a unit in the last place of bfloat16: only the result is rounded.
        torch.testing.assert_close(gathered.double(), expected[name][0], rtol=2**-8, atol=1e-3, msg=name)
    for part in shares:
        torch.testing.assert_close(part[2].double(), expected["running_var"], rtol=0, atol=1e-6)


def mixed_precision_step(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Applies a float32 norm to bfloat16 activations in a worker, as under autocast."""
    rows = shard_rows(len(x), dist.get_rank(), dist.get_world_size())
    x = x[rows].clone().requires_grad_()
    norm = with_scales(GlobalBatchNorm2d(x.shape[1]))
    y = norm(x)
    y.backward(gradient[rows])
    assert x.grad is not None
    assert norm.running_var is not None
    return y.detach(), x.grad, norm.running_var


class TwoNorms(nn.Module):
    """Model of two norms; the second one's inputs depend on the first one's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GlobalBatchNorm2d(3), GlobalBatchNorm2d(5)
        self.between = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.between(self.first(x))))
        return y


def two_norms() -> TwoNorms:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TwoNorms().double()
    with_scales(model.first)
    with_scales(model.second)
    return model


def by_hand(model: TwoNorms, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the inputs of the two norms and the output, each normalised by its own batch."""

    def normalise(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        var, mean = torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)
        scaled = (y - mean) / (var + norm.eps).sqrt()
        return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]

    between = F.relu(model.between(normalise(x, model.first)))
    return x, between, normalise(between, model.second)


@torch.no_grad()
def test_calibrate_sets_statistics_and_returns_outputs() -> None:
    model = two_norms()
    batches = [numbers(n, 3, 6, 6, seed=n) * n for n in (4, 6, 5)]
    model(batches[0] + 100)  # running statistics of other inputs
    weights = {name: p.clone() for name, p in model.named_parameters()}
    outputs = calibrate(model, batches)

    assert not any(module.training for module in model.modules())
    expected = [by_hand(model, batch) for batch in batches]
    for output, (_, _, of_batch) in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, of_batch, rtol=0, atol=1e-10)
    for place, norm in enumerate((model.first, model.second)):
        moments = [torch.var_mean(inputs[place], (0, 2, 3)) for inputs in expected]
        mean = torch.stack([mean for _, mean in moments]).mean(0)
        var = torch.stack([var for var, _ in moments]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(norm.running_var, var, rtol=0, atol=1e-10)
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name])


@torch.no_grad()
def test_calibrate_discards_previous_statistics() -> None:
    batches = [numbers(4, 3, 6, 6, seed=n) for n in (0, 1)]
    fresh, worn = two_norms(), two_norms()
    calibrate(fresh, batches)
    for number in range(3):
        worn.train()(numbers(4, 3, 6, 6, seed=number + 5) * 50)
        calibrate(worn, batches)
    for (name, one), (_, other) in zip(fresh.state_dict().items(), worn.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def calibrate_on_the_first_worker(x: Tensor) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Calibrates in one worker only; a collective call would wait for the others."""
    if dist.get_rank() > 0:
        return None
    model = two_norms()
    (output,) = calibrate(model, [x])
    return output, model.state_dict()


def test_calibrate_does_not_synchronise_workers(workers: Workers) -> None:
    x = numbers(6, 3, 6, 6)
    output, state = workers.run(2, calibrate_on_the_first_worker, x)[0]
    model = two_norms()
    assert torch.equal(output, calibrate(model, [x])[0])
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_every_norm_of_the_network_is_global() -> None:
    norms = [module for module in SimCLR(EncoderSettings(), 3).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, GlobalBatchNorm2d) for norm in norms)
