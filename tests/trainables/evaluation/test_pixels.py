from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA

from tests.trainables.images import smooth_images
from trainables.evaluation.pixels import pixel_features, shrunk


def test_pixels_are_projected_on_the_training_images_components() -> None:
    images = torch.from_numpy(smooth_images(300, 8))
    train, test = pixel_features(images[:200], images[200:])
    assert train.shape == (200, 128)
    assert test.shape == (100, 128)
    assert train.mean(0).abs().max() < 1e-5  # centred where they were fitted
    rows = images.flatten(1).numpy() / 255
    exact = PCA(128, svd_solver="full").fit(rows[:200])
    variances = train.var(0).numpy()
    np.testing.assert_allclose(variances[:16], exact.explained_variance_[:16], rtol=1e-3)
    assert variances.sum() > 0.999 * exact.explained_variance_.sum()
    again, _ = pixel_features(images[:200], images[200:])
    assert torch.equal(train, again)


def test_no_random_state_is_touched() -> None:
    images = torch.from_numpy(smooth_images(40, 8))
    before = torch.get_rng_state()
    pixel_features(images[:30], images[30:])
    assert torch.equal(torch.get_rng_state(), before)


def test_few_small_images_keep_all_components() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 1, 4, 4), dtype=np.uint8))
    train, test = pixel_features(images[:30], images[30:])
    assert train.shape == (30, 16)
    assert test.shape == (20, 16)


def test_large_images_are_averaged() -> None:
    large = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    large[0, :, ::2] = 100
    small = shrunk(large)
    assert small.shape == (2, 3, 32, 32)
    assert small.dtype == torch.uint8
    assert small[0].unique().tolist() == [50]
    assert shrunk(small) is small


def test_fewer_images_than_components() -> None:
    images = torch.from_numpy(smooth_images(60, 8))
    train, test = pixel_features(images[:40], images[40:])
    assert (train.shape, test.shape) == ((40, 39), (20, 39))  # centred images are dependent
    assert train.std(0).min() > 1e-3  # else a classifier would scale up rounding errors
