from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from tests.trainables.images import noise_images
from trainables.batches import ImageFiles
from trainables.settings import EncoderSettings
from trainables.simclr import Encoder, SimCLR, build_encoder

SMALL = EncoderSettings(width=8, depth=1, projection_hidden=6, projection_features=3)


def seeded(settings: EncoderSettings = SMALL, channels: int = 3, seed: int = 0) -> SimCLR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SimCLR(settings, channels)


@pytest.mark.parametrize(("channels", "width", "depth", "size"), [(1, 8, 1, 8), (3, 12, 2, 13)])
def test_shapes(channels: int, width: int, depth: int, size: int) -> None:
    settings = EncoderSettings(width=width, depth=depth, projection_hidden=6, projection_features=3)
    model, images = seeded(settings, channels), torch.rand(5, channels, size, size)
    assert model.encoder(images).shape == (5, settings.features) == (5, 4 * width)
    assert model(images).shape == (5, 3)
    # He et al. 2016, 4.2: 6n layers after the stem, of 3 x 3; a projection where a stage begins, twice.
    kernels = [module.kernel_size for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert kernels.count((3, 3)) == 6 * depth + 1
    assert kernels.count((1, 1)) == 2
    assert model.encoder.blocks(model.encoder.stem(images)).shape[2:] == (math.ceil(size / 4),) * 2


def test_the_representation_is_what_the_head_sees() -> None:
    model, images = seeded().eval(), torch.rand(3, 3, 8, 8)
    assert torch.equal(model(images), model.head(model.encoder(images)))


def test_initial_weights_of_a_seed_do_not_change() -> None:
    """Compares with values of an older version, so that runs and encoders of older versions can be loaded."""
    model, images = seeded(), noise_images(4, 8).float() / 255
    names = list(model.encoder.state_dict())
    assert names[:3] == ["stem.0.weight", "stem.1.weight", "stem.1.bias"]
    assert {name.partition(".")[0] for name in names} == {"stem", "blocks"}
    assert len(model.state_dict()) == 58
    representations = model.encoder(images).detach().double()
    assert float(representations.sum()) == pytest.approx(72.56407985463738, rel=1e-5)
    assert float(model.encoder(images).detach().double().square().sum()) == pytest.approx(60.3180169014507, rel=1e-5)


def test_initialisation_depends_on_the_seed() -> None:
    one, same, other = seeded(seed=1), seeded(seed=1), seeded(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.encoder.stem[0].weight, other.encoder.stem[0].weight)


def test_convolutions_keep_the_gradients_variance() -> None:
    encoder = seeded(EncoderSettings(width=32, depth=2)).encoder
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))  # He et al. 2015, equation 14
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.1)
            assert module.bias is None


def test_every_weight_learns() -> None:
    model = seeded()
    model(torch.rand(4, 3, 8, 8)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


def test_mid_grey_maps_to_zero() -> None:
    encoder = seeded().encoder.eval()
    assert torch.equal(encoder(torch.full((1, 3, 8, 8), 0.5)), torch.zeros(1, 32))
    assert float(encoder(torch.full((1, 3, 8, 8), 0.6)).detach().abs().max()) > 0


def calibrated() -> Encoder:
    encoder = seeded().encoder
    encoder(noise_images(16, 8, seed=5).float() / 255)  # running statistics other than zeros and ones
    return encoder


@pytest.mark.parametrize("batch_size", [1, 3, 7, 512])
def test_embeddings_do_not_depend_on_the_batch(batch_size: int) -> None:
    encoder, images = calibrated(), noise_images(7, 8)
    embedded = encoder.embed(images, batch_size)
    assert embedded.dtype == torch.float32
    assert not embedded.requires_grad
    expected = encoder.eval()(images.float() / 255).detach()
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_embed_keeps_the_encoders_mode(training: bool) -> None:
    encoder = calibrated().train(training)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.embed(noise_images(4, 8))
    assert all(module.training is training for module in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_embeds_an_empty_array() -> None:
    assert calibrated().embed(noise_images(4, 8)[:0]).shape == (0, 32)
    assert calibrated().embed(noise_images(4, 8)[:0].numpy()).shape == (0, 32)


@pytest.mark.parametrize("kind", ["torch", "numpy", "read-only", "reversed", "memory map", "big-endian"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_embeds_supported_types_and_layouts(tmp_path: Path, kind: str, layout: str, dtype: str) -> None:
    encoder, images = calibrated(), noise_images(7, 8)
    expected = encoder.embed(images)
    array = images.numpy() if layout == "NCHW" else images.permute(0, 2, 3, 1).numpy()
    array = array if dtype == "uint8" else (array / 255).astype(dtype)  # never divided twice
    if kind == "torch":
        found = encoder.embed(torch.from_numpy(array), 3)
        assert isinstance(found, torch.Tensor)
    else:
        if kind == "read-only":
            array.setflags(write=False)
        elif kind == "reversed":
            array = array[::-1].copy()[::-1]
        elif kind == "memory map":
            np.save(tmp_path / "images.npy", array)
            array = np.load(tmp_path / "images.npy", mmap_mode="r")
        elif kind == "big-endian" and dtype != "uint8":
            array = array.astype(array.dtype.newbyteorder(">"))
        embedded = encoder.embed(array, 3)
        assert isinstance(embedded, np.ndarray)
        assert embedded.dtype == np.float32
        found = torch.from_numpy(embedded)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3 if dtype == "float16" else 1e-5)


def test_embeds_files_a_batch_at_a_time(tmp_path: Path) -> None:
    images = noise_images(5, 8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    files = ImageFiles(sorted(tmp_path.iterdir()), 8)
    assert np.array_equal(calibrated().embed(files, 2), calibrated().embed(images, 2).numpy())


def test_channels_first_is_preferred_if_both_layouts_match() -> None:
    encoder, images = calibrated().eval(), noise_images(4, 8)[:, :, :3, :3]
    assert torch.equal(encoder.embed(images), encoder(images.float() / 255).detach())


@pytest.mark.parametrize(
    ("images", "error", "way"),
    [
        (torch.rand(2, 3, 8, 8) * 255, ValueError, "divide by 255 or pass uint8"),
        (torch.randn(2, 3, 8, 8), ValueError, "do not normalise them, the encoder does"),
        (torch.full((2, 3, 8, 8), math.nan), ValueError, r"must be in \[0, 1\]: replace NaN"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), TypeError, "torch.int64: pass uint8"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint16), TypeError, "uint16: pass uint8"),
        (np.zeros((2, 3, 8, 8), dtype=bool), TypeError, "bool: pass uint8"),
        (np.zeros((3, 8, 8), dtype=np.uint8), ValueError, r"one image is images\[None\]"),
        (np.zeros((2, 8, 8), dtype=np.uint8), ValueError, r"pass \[n, 3, height, width\]"),
        (np.zeros((2, 1, 8, 8), dtype=np.uint8), ValueError, r"shape \[2, 1, 8, 8\]"),
        ([np.zeros((3, 8, 8), dtype=np.uint8)], TypeError, "np.stack"),
    ],
)
def test_embed_refuses_invalid_images(images: Any, error: type[Exception], way: str) -> None:
    encoder = calibrated().train()
    with pytest.raises(error, match=way) as caught:
        encoder.embed(images)
    assert "\n" not in str(caught.value)
    assert encoder.training


@pytest.mark.parametrize(
    ("images", "error", "way"),
    [
        (noise_images(2, 8), TypeError, r"not torch.uint8: use encoder.embed\(images\)"),
        (noise_images(2, 8).numpy(), TypeError, "not ndarray: use encoder.embed"),
        (torch.rand(2, 8, 8, 3), ValueError, r"takes \[n, 3, height, width\], not \[2, 8, 8, 3\]; encoder.embed"),
        (torch.rand(3, 8, 8), ValueError, r"not \[3, 8, 8\]"),
    ],
)
def test_forward_refuses_invalid_images(images: Any, error: type[Exception], way: str) -> None:
    for encoder in (calibrated(), build_encoder(EncoderSettings(backbone="resnet18"))):
        with pytest.raises(error, match=way):
            encoder(images)


def test_an_encoder_keeps_its_settings() -> None:
    encoder = build_encoder(SMALL, channels=1)
    assert encoder.settings == SMALL
    assert encoder.channels == encoder.stem[0].in_channels == 1


@pytest.mark.parametrize(
    "wrong", [{"widht": 8}, {"width": 7}, {"depth": 0}, {"projection_features": 1}, {"stem": "small"}]
)
def test_refuses_invalid_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        EncoderSettings.model_validate(wrong)
