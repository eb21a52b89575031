"""Tests GradCache against the direct step, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.trainables.workers import Workers
from trainables.batches import shard_rows
from trainables.settings import EncoderSettings
from trainables.simclr import SimCLR, dcl, nt_xent
from trainables.simclr.gradcache import cached_backward
from trainables.simclr.ntxent import nt_xent as direct_loss
from trainables.training.data_parallel import data_parallel


def views(n: int, seed: int = 0) -> Tensor:
    """Returns two views of n images, float64 [2, n, 3, 8, 8]."""
    return torch.rand(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def without_norms() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.Flatten(), nn.Dropout(0.0), nn.Linear(72, 16), nn.Tanh(), nn.Linear(16, 6)
    ).double()


def with_frozen_statistics() -> nn.Module:
    torch.manual_seed(0)
    settings = EncoderSettings(width=8, depth=1, projection_hidden=16, projection_features=8)
    model = SimCLR(settings, 3).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return model.eval()


def with_norms() -> nn.Module:
    return with_frozen_statistics().train()


def cut(both: Tensor, sizes: list[int]) -> list[Callable[[], Tensor]]:
    """Returns micro-batches of these sizes, each created on call."""
    edges = [0, *accumulate(sizes)]
    return [lambda a=a, b=b: torch.cat([both[0, a:b], both[1, a:b]]) for a, b in pairwise(edges)]  # type: ignore[misc]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def direct(model: nn.Module, both: Tensor, loss: Callable[..., Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    value = loss(*model(torch.cat([*both])).chunk(2))
    value.backward()
    return value.detach(), gradients(model)


@pytest.mark.parametrize("build", [without_norms, with_frozen_statistics])
@pytest.mark.parametrize("sizes", [[12], [6, 6], [5, 5, 2], [1] * 12, [1, 11]], ids=str)
@pytest.mark.parametrize("loss", [nt_xent, dcl])
def test_equals_the_direct_step(build: Callable[[], nn.Module], sizes: list[int], loss: Callable[..., Tensor]) -> None:
    model, both = build(), views(12)
    criterion = partial(loss, temperature=0.3)
    value, expected = direct(model, both, criterion)
    model.zero_grad()
    cached = cached_backward(model, cut(both, sizes), criterion)
    torch.testing.assert_close(cached, value, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(model), expected, rtol=0, atol=1e-10)


def test_plain_accumulation_differs_from_the_direct_step() -> None:
    model, both = without_norms(), views(12)
    criterion = partial(nt_xent, temperature=0.3)
    _, expected = direct(model, both, criterion)
    model.zero_grad()
    for part in cut(both, [6, 6]):
        (criterion(*model(part()).chunk(2)) / 2).backward()
    differences = [float((gradients(model)[name] - expected[name]).norm()) for name in expected]
    assert max(differences) > 1e-3


def test_adds_to_existing_gradients() -> None:
    model, both = without_norms(), views(6)
    criterion = partial(nt_xent, temperature=0.3)
    _, once = direct(model, both, criterion)
    cached_backward(model, cut(both, [3, 3]), criterion)
    torch.testing.assert_close(gradients(model), {name: 2 * g for name, g in once.items()}, rtol=0, atol=1e-10)


class Statistics(dict[str, Any]):
    """Returns the running statistics of batch normalisation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__({name: buffer.clone() for name, buffer in model.named_buffers()})


def test_batch_statistics_of_micro_batches_are_updated_once() -> None:
    """Each is normalised by itself, and running statistics are updated once by each, in order."""
    both = views(12)
    criterion = partial(nt_xent, temperature=0.3)
    reference, model = with_norms(), with_norms()
    parts = [part() for part in cut(both, [6, 6])]
    projections = [reference(part).chunk(2) for part in parts]
    value = criterion(*(torch.cat(z) for z in zip(*projections, strict=True)))
    value.backward()

    cached = cached_backward(model, cut(both, [6, 6]), criterion)
    torch.testing.assert_close(cached, value.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(model), gradients(reference), rtol=0, atol=1e-10)
    torch.testing.assert_close(Statistics(model), Statistics(reference), rtol=0, atol=1e-12)


def test_batch_norm_error_grows_with_smaller_micro_batches() -> None:
    both = views(32)
    criterion = partial(nt_xent, temperature=0.3)
    _, expected = direct(with_norms(), both, criterion)
    whole = torch.cat([g.flatten() for g in expected.values()])
    errors = []
    for size in (32, 16, 8, 4):
        model = with_norms()
        cached_backward(model, cut(both, [size] * (32 // size)), criterion)
        part = torch.cat([g.flatten() for g in gradients(model).values()])
        errors.append(float((part - whole).norm() / whole.norm()))
    assert errors[0] < 1e-10
    assert errors == sorted(errors)
    assert 0.01 < errors[1] < errors[3] < 2  # a quarter of the gradient and more


def test_dropout_masks_are_equal_in_both_passes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Dropout(0.5), nn.Linear(32, 8)).double()
    both, criterion = views(6), partial(nt_xent, temperature=0.3)
    torch.manual_seed(1)
    cached = cached_backward(model, cut(both, [3, 3]), criterion)
    torch.manual_seed(1)
    projections = [model(part()).chunk(2) for part in cut(both, [3, 3])]
    actual = gradients(model)
    model.zero_grad()
    value = criterion(*(torch.cat(z) for z in zip(*projections, strict=True)))
    value.backward()
    torch.testing.assert_close(cached, value.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(actual, gradients(model), rtol=0, atol=1e-10)


def test_autocast_covers_the_network_only() -> None:
    settings = EncoderSettings(width=8, depth=1, projection_hidden=16, projection_features=8)
    torch.manual_seed(0)
    model, both = SimCLR(settings, 3).eval(), views(8).float()
    seen: list[torch.dtype] = []

    def criterion(z_a: Tensor, z_b: Tensor) -> Tensor:
        seen.append(z_a.dtype)
        return direct_loss(z_a, z_b, 0.3)

    cached_backward(model, cut(both, [4, 4]), criterion, torch.autocast("cpu", torch.bfloat16))
    assert seen == [torch.bfloat16]
    assert {g.dtype for g in gradients(model).values()} == {torch.float32}


# --- several workers ---


def cached_step(both: Tensor, micro_batch: int) -> tuple[Tensor, dict[str, Tensor], int]:
    """Returns loss, gradients and number of synchronisations of a worker with its shard."""
    rank, world = dist.get_rank(), dist.get_world_size()
    with torch.random.fork_rng(devices=[]):
        network = with_frozen_statistics()
    parallel = data_parallel(network)
    synchronised = [0]

    def hook(_, bucket):  # type: ignore[no-untyped-def]
        synchronised[0] += bucket.is_last()
        return dist.all_reduce(bucket.buffer().div_(world), async_op=True).get_future().then(lambda f: f.value()[0])

    parallel.register_comm_hook(None, hook)
    n = both.shape[1]
    rows = shard_rows(n, rank, world)
    own, parts = both[:, rows], math.ceil(math.ceil(n / world) / micro_batch)
    pieces = [shard_rows(rows.stop - rows.start, part, parts) for part in range(parts)]
    sizes = [piece.stop - piece.start for piece in pieces]
    assert max(sizes) <= micro_batch
    value = cached_backward(parallel, cut(own, sizes), partial(nt_xent, temperature=0.3))
    return value, gradients(network), synchronised[0]


@pytest.mark.parametrize(("world", "batch", "micro_batch"), [(2, 12, 3), (4, 13, 2), (2, 13, 4)])
def test_several_workers_equal_the_direct_step_and_synchronise_once(
    workers: Workers, world: int, batch: int, micro_batch: int
) -> None:
    both = views(batch)
    with torch.random.fork_rng(devices=[]):
        value, expected = direct(with_frozen_statistics(), both, partial(nt_xent, temperature=0.3))
    for cached, actual, synchronised in workers.run(world, cached_step, both, micro_batch):
        torch.testing.assert_close(cached, value, rtol=0, atol=1e-12)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
        assert synchronised == 1
