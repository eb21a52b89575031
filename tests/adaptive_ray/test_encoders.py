"""Encoders are saved and loaded bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import adaptive_ray
from adaptive_ray.encoders import load_encoder, save_encoder
from adaptive_ray.errors import UserError
from trainables.settings import EncoderSettings
from trainables.simclr import Encoder, build_encoder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread: small tensors are slower with several threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def encoder() -> Encoder:
    """A small encoder with non-default batch statistics."""
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(width=8, depth=1), channels=1)
    for name, buffer in encoder.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in name else -1.0))
    return encoder


@pytest.fixture
def saved(encoder: Encoder, tmp_path: Path) -> Path:
    directory = tmp_path / "a run"
    directory.mkdir()
    save_encoder(encoder, directory, image_size=28, provenance={"dataset": "mnist5k", "batch_size": 64})
    return directory


@pytest.mark.parametrize(
    ("kind", "name"), [(str, ""), (Path, ""), (str, "encoder.safetensors"), (Path, "encoder.json")]
)
def test_outputs_are_bit_equal(saved: Path, encoder: Encoder, kind: type, name: str) -> None:
    loaded = load_encoder(kind(saved / name))
    assert not loaded.training
    floats = torch.rand(7, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(floats), encoder.eval()(floats))
    images = torch.randint(0, 256, (7, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(loaded.embed(images), encoder.embed(images))
    assert loaded.embed(images).shape == (7, 32)
    assert loaded.embed(images).std() > 0


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("shufflenet_v2_x0_5", 32), ("mnasnet0_5", 32), pytest.param("vit_b_16", 16, marks=pytest.mark.slow)],
)
def test_a_backbone_needs_neither_network_nor_the_weights_it_started_from(
    backbone: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    weights = "torchvision" if backbone != "mnasnet0_5" else str(tmp_path / "gone.pt")
    settings = EncoderSettings(backbone=backbone, stem="imagenet", weights=weights)
    encoder = build_encoder(settings, image_size=size, pretrained=False).eval()
    for buffer, value in ((encoder.mean, 0.4), (encoder.std, 0.2)):  # as pretrained weights set them
        buffer.fill_(value)
    save_encoder(encoder, tmp_path, image_size=size, provenance={})
    loaded = load_encoder(tmp_path)
    (tmp_path / "encoder.safetensors").unlink()  # large
    assert loaded.settings == settings
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded(images), encoder(images))
    assert float(loaded.mean.max()) == pytest.approx(0.4)


def test_an_encoder_of_a_version_without_backbones(saved: Path, encoder: Encoder) -> None:
    file = saved / "encoder.json"
    description = json.loads(file.read_text())
    for name in ("backbone", "stem", "weights"):
        del description["architecture"][name]
    file.write_text(json.dumps(description))
    assert load_encoder(saved).settings == encoder.settings


def test_from_the_package(saved: Path, encoder: Encoder) -> None:
    from adaptive_ray import load_encoder as exported

    assert exported is adaptive_ray.load_encoder
    for path in (saved, str(saved / "encoder.safetensors")):
        loaded = exported(path)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), encoder.parameters(), strict=True))
    with pytest.raises(AttributeError, match="no_such_name"):
        adaptive_ray.no_such_name  # noqa: B018


def test_the_description_shows_how_to_use_it(saved: Path) -> None:
    description = json.loads((saved / "encoder.json").read_text())
    assert description["channels"] == 1
    assert description["image_size"] == 28
    assert description["features"] == 32
    assert description["architecture"]["width"] == 8
    assert (description["dataset"], description["batch_size"]) == ("mnist5k", 64)


def test_saving_changes_nothing(encoder: Encoder, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    save_encoder(encoder, tmp_path, image_size=28, provenance={})
    assert encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_encoder(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("missing", ["encoder.json", "encoder.safetensors"])
def test_a_missing_file_is_reported(saved: Path, missing: str) -> None:
    (saved / missing).unlink()
    assert complaint(saved) == f"{saved}: no encoder found ({missing} is missing)"


def test_no_directory(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in complaint(tmp_path / "none")


def test_some_other_file(saved: Path) -> None:
    file = saved / "config.yaml"
    file.write_text("seed: 1\n")
    assert str(file) in complaint(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"architecture": {',
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b'{"architecture": {"width": "wide"}, "channels": 1}',
        b'{"architecture": {"width": 8, "depth": 1}, "channels": "one"}',
        b'{"architecture": {"width": 8, "depth": 1}, "channels": -1}',
    ],
)
def test_a_corrupt_description(saved: Path, content: bytes) -> None:
    (saved / "encoder.json").write_bytes(content)
    text = complaint(saved)
    assert str(saved) in text
    assert "corrupt" in text


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_corrupt_weights(saved: Path, keep: int) -> None:
    file = saved / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    text = complaint(saved)
    assert str(saved) in text
    assert "corrupt" in text


def test_files_that_do_not_fit_together(saved: Path) -> None:
    file = saved / "encoder.json"
    description = json.loads(file.read_text())
    description["architecture"]["width"] = 16
    file.write_text(json.dumps(description))
    assert "corrupt" in complaint(saved)
