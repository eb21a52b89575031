from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trainables.images import smooth_images
from trainables.evaluation.reference import ReferenceSet
from trainables.settings import EncoderSettings
from trainables.simclr import Augment, SimCLR, nt_xent

CPU = torch.device("cpu")
TEMPERATURE = 0.3


def reference_set(images: np.ndarray, seed: int = 0, temperature: float = TEMPERATURE) -> ReferenceSet:
    return ReferenceSet(images, Augment(images.shape[-1]), temperature=temperature, seed=seed, device=CPU)


def network(seed: int = 0) -> SimCLR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SimCLR(EncoderSettings(width=8, depth=1, projection_hidden=8, projection_features=6), 3)


class Fixed(nn.Module):
    """Model whose outputs are the next rows of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.position = table, 0

    def forward(self, images: Tensor) -> Tensor:
        rows = self.table[self.position : self.position + len(images)]
        self.position = (self.position + len(images)) % len(self.table)
        return rows


def measures_of(z_a: Tensor, z_b: Tensor, temperature: float = TEMPERATURE) -> dict[str, float]:
    blank = np.zeros((len(z_a), 3, 4, 4), dtype=np.uint8)
    return reference_set(blank, temperature=temperature).measure(Fixed(torch.cat([z_a, z_b])))


def random_projections(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    z = torch.randn(2 * n, d, generator=torch.Generator().manual_seed(seed))
    return z[:n], z[n:]


def test_the_loss_depends_on_the_weights_only() -> None:
    references, model = reference_set(smooth_images(24)), network()
    first = references.measure(model)
    torch.rand(3)  # global random state has no effect
    assert references.measure(model) == first
    assert reference_set(smooth_images(24)).measure(network()) == first
    with torch.no_grad():
        next(model.parameters()).mul_(-1)
    assert references.measure(model) != first


def test_the_loss_does_not_depend_on_running_statistics_or_mode() -> None:
    references, model = reference_set(smooth_images(24)), network()
    first = references.measure(model)
    model.train()
    model(torch.rand(8, 3, 16, 16) * 7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.add_(3)
    assert references.measure(model) == first


def test_measure_keeps_weights_and_gradients_and_sets_evaluation_mode() -> None:
    references, model = reference_set(smooth_images(24)), network()
    before = [p.detach().clone() for p in model.parameters()]
    references.measure(model)
    for p, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert p.grad is None
    assert not model.training
    # The running statistics are those of the views: in evaluation mode the same network, but for n / (n - 1).
    views = Augment(16)(torch.tensor(smooth_images(24)).repeat(2, 1, 1, 1), torch.Generator().manual_seed(0))
    in_evaluation = model(views)
    in_training = model.train()(views)
    torch.testing.assert_close(in_evaluation, in_training, rtol=0.05, atol=0.01)


def test_views_differ_between_seeds_and_within_a_pair() -> None:
    images, model = smooth_images(24), network()
    one, other = (reference_set(images, seed).measure(model) for seed in (0, 1))
    assert one["reference_loss"] != other["reference_loss"]
    assert one["alignment"] > 1e-3


def test_the_loss_is_nt_xent_of_the_projections() -> None:
    images, model = smooth_images(24), network()
    measured = reference_set(images, seed=5).measure(model)["reference_loss"]
    views = Augment(16)(torch.tensor(images).repeat(2, 1, 1, 1), torch.Generator().manual_seed(5))
    with torch.no_grad():
        z_a, z_b = model.train()(views).chunk(2)
    assert measured == pytest.approx(float(nt_xent(z_a, z_b, TEMPERATURE)), abs=1e-5)


@pytest.mark.parametrize("n", [2, 40, 700])  # 1400 views are embedded in two parts
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_computed_over_all_images(n: int, temperature: float) -> None:
    z_a, z_b = random_projections(n, 8)
    z_b = z_a + 0.5 * z_b
    measured = measures_of(z_a, z_b, temperature)["reference_loss"]
    assert measured == pytest.approx(float(nt_xent(z_a.double(), z_b.double(), temperature)), abs=1e-5)


@pytest.mark.parametrize("n", [16, 128])
def test_random_projections_are_near_chance(n: int) -> None:
    z_a, z_b = random_projections(n, 1024)
    assert measures_of(z_a, z_b, 0.5)["reference_loss"] == pytest.approx(math.log(2 * n - 1), abs=0.02)


def test_metrics_equal_the_definitions_of_their_papers() -> None:
    z_a, z_b = random_projections(12, 5)
    z_b = z_a + 0.4 * z_b
    measured = measures_of(z_a, z_b)

    unit_a, unit_b = ([row / np.linalg.norm(row) for row in z.double().numpy()] for z in (z_a, z_b))
    alignment = np.mean([np.linalg.norm(a - b) ** 2 for a, b in zip(unit_a, unit_b, strict=True)])
    pairs = [(x, y) for i, x in enumerate(unit_a) for j, y in enumerate(unit_a) if i != j]
    uniformity = math.log(np.mean([math.exp(-2 * np.linalg.norm(x - y) ** 2) for x, y in pairs]))
    values = np.linalg.svd(torch.cat([z_a, z_b]).double().numpy(), compute_uv=False)
    shares = values / values.sum() + 1e-7
    rankme = math.exp(-sum(share * math.log(share) for share in shares))

    assert measured["alignment"] == pytest.approx(alignment, abs=1e-5)
    assert measured["uniformity"] == pytest.approx(uniformity, abs=1e-5)
    assert measured["rankme"] == pytest.approx(rankme, abs=1e-3)


def test_metrics_of_collapsed_projections() -> None:
    z = torch.ones(20, 6) * torch.rand(20, 1, generator=torch.Generator().manual_seed(0)).add(0.5)
    measured = measures_of(z, z)
    expected = {"reference_loss": math.log(39), "alignment": 0, "uniformity": 0, "rankme": 1}
    assert measured == pytest.approx(expected, abs=2e-4)


def test_metrics_of_optimal_projections() -> None:
    z = torch.eye(8)
    measured = measures_of(z, z)
    expected = {
        "reference_loss": math.log(math.exp(1 / TEMPERATURE) + 14) - 1 / TEMPERATURE,
        "alignment": 0,
        "uniformity": -4,  # all pairs are sqrt(2) apart
        "rankme": 8,
    }
    assert measured == pytest.approx(expected, abs=1e-4)


def test_images_may_be_read_only_and_are_not_modified() -> None:
    images = smooth_images(24)
    images.flags.writeable = False
    before = images.copy()
    reference_set(images).measure(network())
    np.testing.assert_array_equal(images, before)
