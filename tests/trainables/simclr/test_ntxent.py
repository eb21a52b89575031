from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainables.workers import Workers
from trainables.simclr import LOSSES, dcl, nt_xent


def projections(n: int, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z[0].requires_grad_(), z[1].requires_grad_()


def some_weights(n: int) -> Tensor:
    weights = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    weights[0] = 0.0  # not an anchor, but a negative of all others
    return weights


def written_out(z_a: Tensor, z_b: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Chen et al. 2020, equation 1, anchor by anchor; i's partner is the same image's other view."""
    z = [*z_a, *z_b]
    n = len(z_a)

    def similarity(i: int, k: int) -> Tensor:
        return torch.dot(z[i], z[k]) / (torch.dot(z[i], z[i]).sqrt() * torch.dot(z[k], z[k]).sqrt())

    loss, total = torch.zeros((), dtype=torch.float64), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        denominator = torch.zeros((), dtype=torch.float64)
        for k in range(2 * n):
            if k != i:
                denominator = denominator + torch.exp(similarity(i, k) / temperature)
        weight = 1.0 if weights is None else float(weights[i % n])
        loss = loss - weight * torch.log(torch.exp(similarity(i, partner) / temperature) / denominator)
        total += weight
    return loss / total


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def assert_all_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 1e-12) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 14, 1000])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equals_equation_1_in_value_and_gradient(chunk: int | None, weighted: bool, temperature: float) -> None:
    z_a, z_b = projections(7)
    weights = some_weights(7) if weighted else None
    actual = nt_xent(z_a, z_b, temperature, weights=weights, chunk=chunk)
    expected = written_out(z_a, z_b, temperature, weights)
    assert_all_close(value_and_gradients(actual, z_a, z_b), value_and_gradients(expected, z_a, z_b))


@pytest.mark.parametrize("entries", [1, 50])
def test_equals_equation_1_with_several_tiles(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.simclr.ntxent._TILE", (entries, entries))
    z_a, z_b = projections(7)
    actual = value_and_gradients(nt_xent(z_a, z_b, 0.5), z_a, z_b)
    assert_all_close(actual, value_and_gradients(written_out(z_a, z_b, 0.5), z_a, z_b))


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_equals_finite_differences(weighted: bool) -> None:
    weights = some_weights(4) if weighted else None
    assert torch.autograd.gradcheck(
        lambda z_a, z_b: nt_xent(z_a, z_b, 0.3, weights=weights, chunk=3), projections(4, d=3)
    )


def test_gradient_is_scaled_by_the_upstream_gradient() -> None:
    z_a, z_b = projections(4)
    plain = torch.autograd.grad(nt_xent(z_a, z_b, 0.5), (z_a, z_b))
    scaled = torch.autograd.grad(-3 * nt_xent(z_a, z_b, 0.5), (z_a, z_b))
    assert_all_close(scaled, tuple(-3 * gradient for gradient in plain))


@pytest.mark.parametrize("weight", [1.0, 2.0, 0.25])
def test_uniform_weights_have_no_effect(weight: float) -> None:
    z_a, z_b = projections(6)
    without = value_and_gradients(nt_xent(z_a, z_b, 0.5), z_a, z_b)
    uniform = torch.full((6,), weight, dtype=torch.float64)
    weighted = value_and_gradients(nt_xent(z_a, z_b, 0.5, weights=uniform), z_a, z_b)
    for one, other in zip(weighted, without, strict=True):
        assert torch.equal(one, other)


def test_only_relative_weights_matter() -> None:
    z_a, z_b = projections(6)
    once = value_and_gradients(nt_xent(z_a, z_b, 0.5, weights=some_weights(6)), z_a, z_b)
    thrice = value_and_gradients(nt_xent(z_a, z_b, 0.5, weights=3 * some_weights(6)), z_a, z_b)
    assert_all_close(thrice, once)


def test_weights_get_no_gradient() -> None:
    z_a, z_b = projections(4)
    weights = some_weights(4).requires_grad_()
    nt_xent(z_a, z_b, 0.5, weights=weights).backward()
    assert weights.grad is None
    assert z_a.grad is not None


def test_equals_chance_level_for_equal_projections() -> None:
    z = torch.ones(6, 3, dtype=torch.float64)
    assert float(nt_xent(z, z, 0.2)) == pytest.approx(math.log(2 * 6 - 1), abs=1e-12)


def test_equals_the_optimum_for_orthogonal_images() -> None:
    z, temperature = torch.eye(6, dtype=torch.float64), 0.2
    expected = math.log(math.exp(1 / temperature) + 2 * 6 - 2) - 1 / temperature
    assert float(nt_xent(z, z, temperature)) == pytest.approx(expected, abs=1e-12)


def test_one_image_has_no_negatives() -> None:
    z_a, z_b = projections(1)
    loss, by_a, by_b = value_and_gradients(nt_xent(z_a, z_b, 0.5), z_a, z_b)
    assert_all_close((loss, by_a, by_b), tuple(torch.zeros_like(t) for t in (loss, by_a, by_b)))


def test_lengths_and_the_order_of_views_do_not_matter() -> None:
    z_a, z_b = (z.detach() for z in projections(6))
    lengths = torch.rand(6, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    loss = float(nt_xent(z_a, z_b, 0.5))
    assert float(nt_xent(z_a * lengths, z_b, 0.5)) == pytest.approx(loss, abs=1e-12)
    assert float(nt_xent(z_b, z_a, 0.5)) == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_computes_in_float32_for_any_input(dtype: torch.dtype, tolerance: float) -> None:
    z_a, z_b = (z.detach().to(dtype).requires_grad_() for z in projections(8))
    loss = nt_xent(z_a, z_b, 0.1)
    assert loss.dtype == torch.float32
    exact = [z.detach().double().requires_grad_() for z in (z_a, z_b)]
    expected, *gradients = value_and_gradients(nt_xent(*exact, 0.1), *exact)
    error = abs(float(loss.detach()) - float(expected))
    assert error < 1e-5  # only the error of float32
    loss.backward()
    for z, gradient in zip((z_a, z_b), gradients, strict=True):
        assert z.grad is not None
        assert z.grad.dtype == dtype
        torch.testing.assert_close(z.grad.double(), gradient, rtol=tolerance, atol=tolerance)


def test_autocast_does_not_affect_the_loss() -> None:
    z_a, z_b = (z.detach().float().requires_grad_() for z in projections(8))
    plain = value_and_gradients(nt_xent(z_a, z_b, 0.1), z_a, z_b)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_gradients(nt_xent(z_a, z_b, 0.1), z_a, z_b)
    for one, other in zip(inside, plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("temperature", [0.005, 0.0199, 0.02, 0.03])
def test_stays_finite_at_a_low_temperature(temperature: float) -> None:
    z_a, z_b = projections(8)
    with torch.no_grad():
        z_b[0], z_b[1] = z_a[0], -z_a[1]  # smallest and largest distance
    expected = value_and_gradients(nt_xent(z_a, z_b, temperature), z_a, z_b)
    single = tuple(z.detach().float().requires_grad_() for z in (z_a, z_b))
    actual = value_and_gradients(nt_xent(*single, temperature), *single)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def test_needs_no_gradient() -> None:
    z_a, z_b = projections(6)
    with torch.no_grad():
        assert torch.equal(nt_xent(z_a, z_b, 0.5), nt_xent(z_a.detach(), z_b.detach(), 0.5))
    assert torch.equal(nt_xent(z_a, z_b, 0.5).detach(), nt_xent(z_a.detach(), z_b.detach(), 0.5))


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((12,), (12,)), ((2, 4, 3), (2, 4, 3))])
def test_refuses_views_of_different_shapes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        nt_xent(torch.ones(shapes[0]), torch.ones(shapes[1]), 0.5)


@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_refuses_invalid_temperatures(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(torch.ones(4, 3), torch.ones(4, 3), temperature)


# --- images that occur twice in a batch ---

#: Image 0 comes three times, image 1 twice.
TWICE = torch.tensor([0, 1, 2, 0, 3, 1, 4, 0])


def apart(
    z_a: Tensor, z_b: Tensor, temperature: float, images: Tensor, weights: Tensor, *, decoupled: bool = False
) -> Tensor:
    """Equation 1, or for DCL equation 6, without the views of the anchor's own image in the denominator."""
    z, n = [row / row.norm() for row in (*z_a, *z_b)], len(z_a)
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        positive = torch.dot(z[i], z[partner]) / temperature
        others = [k for k in range(2 * n) if images[k % n] != images[i % n]]
        terms = [torch.dot(z[i], z[k]) / temperature for k in others] + ([] if decoupled else [positive])
        denominator = torch.logsumexp(torch.stack(terms), 0) if terms else torch.zeros((), dtype=torch.float64)
        loss = loss + weights[i % n] * (denominator - positive)
    return loss / (2 * weights.sum())


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("temperature", [0.01, 0.3])
def test_repeated_images_are_not_negatives(name: str, temperature: float) -> None:
    z_a, z_b = projections(8)
    weights = some_weights(8)
    expected = apart(z_a, z_b, temperature, TWICE, weights, decoupled=name == "dcl")
    expected_all = value_and_gradients(expected, z_a, z_b)
    for chunk in (None, 1, 3, 7):
        actual = LOSSES[name](z_a, z_b, temperature, weights=weights, images=TWICE, chunk=chunk)  # type: ignore[call-arg]
        assert_all_close(value_and_gradients(actual, z_a, z_b), expected_all, tolerance=1e-11)


@pytest.mark.parametrize("name", list(LOSSES))
def test_indices_of_distinct_images_have_no_effect(name: str) -> None:
    z_a, z_b = (z.detach().float().requires_grad_() for z in projections(9))
    plain = value_and_gradients(LOSSES[name](z_a, z_b, 0.3), z_a, z_b)
    with_images = value_and_gradients(LOSSES[name](z_a, z_b, 0.3, images=torch.arange(9)), z_a, z_b)
    assert all(torch.equal(one, other) for one, other in zip(plain, with_images, strict=True))


@pytest.mark.parametrize("temperature", [0.01, 0.3])
def test_without_negatives_only_the_positive_term_remains(temperature: float) -> None:
    z_a, z_b = projections(2)
    images = torch.zeros(2, dtype=torch.long)
    assert float(nt_xent(z_a, z_b, temperature, images=images).detach()) == pytest.approx(0, abs=1e-12)
    expected = apart(z_a, z_b, temperature, images, torch.ones(2, dtype=torch.float64), decoupled=True)
    actual = dcl(z_a, z_b, temperature, images=images)
    assert_all_close(value_and_gradients(actual, z_a, z_b), value_and_gradients(expected, z_a, z_b), tolerance=1e-11)


def loss_of_a_shard(
    z_a: Tensor,
    z_b: Tensor,
    weights: Tensor | None,
    sizes: list[int],
    chunk: int | None,
    images: Tensor | None = None,
    name: str = "nt_xent",
) -> tuple[Tensor, ...]:
    """Returns the loss and the gradient of a worker's rows."""
    rank = dist.get_rank()
    z_a, z_b = (z.split(sizes)[rank].clone().requires_grad_() for z in (z_a, z_b))
    weights, images = (None if of_all is None else of_all.split(sizes)[rank] for of_all in (weights, images))
    loss = LOSSES[name](z_a, z_b, 0.3, weights=weights, images=images, chunk=chunk)  # type: ignore[call-arg]
    return value_and_gradients(loss, z_a, z_b)


@pytest.mark.parametrize(
    ("sizes", "weighted", "chunk"),
    [
        ([4, 4], False, None),
        ([7, 6], True, 4),
        ([2, 2, 2, 2], True, 1),
        ([3, 3, 3, 4], False, 3),
        ([1, 9, 2, 1], True, None),
        ([5, 0, 8, 0], False, None),
    ],
    ids=str,
)
def test_workers_get_the_loss_and_mean_gradient_of_one_worker(
    workers: Workers, sizes: list[int], weighted: bool, chunk: int | None
) -> None:
    n, world = sum(sizes), len(sizes)
    z_a, z_b = projections(n)
    weights = some_weights(n) if weighted else None
    expected, *gradients = value_and_gradients(written_out(z_a, z_b, 0.3, weights), z_a, z_b)
    shares = workers.run(world, loss_of_a_shard, z_a.detach(), z_b.detach(), weights, sizes, chunk)
    for loss, _, _ in shares:
        assert float(loss) == pytest.approx(float(expected), abs=1e-12)
    # A row's gradient exists on its own worker only: the mean over workers divides it by the world size.
    gathered = tuple(torch.cat([share[view] for share in shares]) / world for view in (1, 2))
    assert_all_close(gathered, tuple(gradients))


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("sizes", [[4, 4], [3, 0, 4, 1]], ids=str)
def test_images_may_repeat_within_and_across_workers(workers: Workers, name: str, sizes: list[int]) -> None:
    z_a, z_b = projections(8)
    weights = some_weights(8)
    loss = apart(z_a, z_b, 0.3, TWICE, weights, decoupled=name == "dcl")
    expected, *gradients = value_and_gradients(loss, z_a, z_b)
    arguments = (z_a.detach(), z_b.detach(), weights, sizes, 3, TWICE, name)
    shares = workers.run(len(sizes), loss_of_a_shard, *arguments)
    for value, _, _ in shares:
        assert float(value) == pytest.approx(float(expected), abs=1e-12)
    assert_all_close(tuple(torch.cat([s[view] for s in shares]) / len(sizes) for view in (1, 2)), tuple(gradients))


def half_of_the_workers(z_a: Tensor, z_b: Tensor) -> tuple[Tensor, ...]:
    """Computes the loss in two process groups of two workers, each with its own batch."""
    rank = dist.get_rank()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    z_a, z_b = (z.chunk(4)[rank].clone().requires_grad_() for z in (z_a, z_b))
    return value_and_gradients(nt_xent(z_a, z_b, 0.3, group=groups[rank // 2]), z_a, z_b)


def test_process_groups_have_separate_batches(workers: Workers) -> None:
    z_a, z_b = projections(12)
    shares = workers.run(4, half_of_the_workers, z_a.detach(), z_b.detach())
    for half in (0, 1):
        a, b = (z.detach()[6 * half : 6 * half + 6].requires_grad_() for z in (z_a, z_b))
        expected, *gradients = value_and_gradients(written_out(a, b, 0.3), a, b)
        pair = shares[2 * half : 2 * half + 2]
        for loss, _, _ in pair:
            assert float(loss) == pytest.approx(float(expected), abs=1e-12)
        assert_all_close(tuple(torch.cat([share[view] for share in pair]) / 2 for view in (1, 2)), tuple(gradients))
