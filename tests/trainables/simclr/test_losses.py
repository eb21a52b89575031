"""Tests the look-up of losses, and DCL against its equation."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainables.workers import Workers
from trainables.simclr import LOSSES, dcl, nt_xent
from trainables.simclr.losses import chance_level, check_name, loss_named, with_images_argument


def projections(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z[0].requires_grad_(), z[1].requires_grad_()


def written_out(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """Yeh et al. 2022, equation 6, anchor by anchor."""
    z = [row / row.norm() for row in (*z_a, *z_b)]
    n = len(z_a)
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        negatives = torch.zeros((), dtype=torch.float64)
        for k in range(2 * n):
            if k not in (i, partner):
                negatives = negatives + torch.exp(torch.dot(z[i], z[k]) / temperature)
        loss = loss - torch.dot(z[i], z[partner]) / temperature + torch.log(negatives)
    return loss / (2 * n)


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("chunk", [None, 1, 3, 14])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_dcl_equals_its_equation(chunk: int | None, temperature: float) -> None:
    z_a, z_b = projections(7)
    actual = value_and_gradients(dcl(z_a, z_b, temperature, chunk=chunk), z_a, z_b)
    expected = value_and_gradients(written_out(z_a, z_b, temperature), z_a, z_b)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def shard_of_a_worker(z_a: Tensor, z_b: Tensor, sizes: list[int], name: str, sizes_given: bool) -> tuple[Tensor, ...]:
    """Returns the loss and the gradient of a worker's rows."""
    z_a, z_b = (z.split(sizes)[dist.get_rank()].clone().requires_grad_() for z in (z_a, z_b))
    return value_and_gradients(LOSSES[name](z_a, z_b, 0.3, shard_sizes=sizes if sizes_given else None), z_a, z_b)


@pytest.mark.parametrize("sizes", [[4, 4], [3, 3, 2, 3]], ids=str)
@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("sizes_given", [False, True])
def test_workers_get_the_loss_of_one(workers: Workers, sizes: list[int], name: str, sizes_given: bool) -> None:
    z_a, z_b = projections(sum(sizes))
    loss, *expected = value_and_gradients(LOSSES[name](z_a, z_b, 0.3), z_a, z_b)
    parts = workers.run(len(sizes), shard_of_a_worker, z_a.detach(), z_b.detach(), sizes, name, sizes_given)
    for value, _, _ in parts:
        torch.testing.assert_close(value, loss, rtol=0, atol=1e-12)
    for view, gradient in zip((1, 2), expected, strict=True):
        mean = torch.cat([part[view] for part in parts]) / len(sizes)
        torch.testing.assert_close(mean, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("n", [2, 64])
def test_chance_level_is_the_loss_of_equal_projections(name: str, n: int) -> None:
    z = torch.ones(n, 3, dtype=torch.float64)
    assert float(loss_named(name)(z, z, 0.2)) == pytest.approx(chance_level(name, n), abs=1e-12)


def test_a_custom_loss_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_losses.py").write_text("def mine(z_a, z_b, temperature, **_):\n    return (z_a - z_b).sum()\n")
    monkeypatch.syspath_prepend(tmp_path)
    loss = loss_named("my_losses:mine")
    assert float(loss(torch.ones(2, 2), torch.zeros(2, 2), 0.5)) == 4.0
    assert math.isnan(chance_level("my_losses:mine", 8))
    sys.modules.pop("my_losses")


def test_a_name_is_checked_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert check_name("explosive:loss") == "explosive:loss"
    with pytest.raises(ValueError, match="'explosive:loss' cannot be imported: RuntimeError: imported"):
        loss_named("explosive:loss")


def test_a_loss_without_argument_images_gets_none() -> None:
    def simple(z_a: Tensor, z_b: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
        return (z_a - z_b).sum() * temperature

    class Module(torch.nn.Module):
        def forward(self, z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
            return (z_a - z_b).sum() * temperature

    for loss in (simple, Module()):
        adapted, uses = with_images_argument(loss)  # type: ignore[arg-type]
        assert not uses
        assert float(adapted(torch.ones(2, 2), torch.zeros(2, 2), 0.5, images=torch.arange(2))) == 2.0
    assert with_images_argument(nt_xent) == (nt_xent, True)


@pytest.mark.parametrize("name", ["ntxent", "nowhere.at_all:loss", "math:nothing", "math:pi", ":", "math:", "a b:c"])
def test_refuses_invalid_losses_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="loss") as caught:
        loss_named(name)
    assert repr(name) in str(caught.value)


def test_an_unknown_loss_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"use one of nt_xent, dcl, or package\.module:function"):
        loss_named("simclr")


def test_dcl_has_larger_gradients_for_small_batches() -> None:
    """The positive term in the denominator reduces NT-Xent's gradient, but not DCL's (Yeh et al., 3)."""
    torch.manual_seed(0)
    z_a = torch.eye(3, dtype=torch.float64)
    z_b = z_a + 0.1 * torch.randn(3, 3, dtype=torch.float64)
    sizes = []
    for loss in (nt_xent, dcl):
        z = z_a.clone().requires_grad_()
        sizes.append(float(torch.autograd.grad(loss(z, z_b, 0.1), z)[0].norm()))
    assert sizes[1] > 10 * sizes[0]
