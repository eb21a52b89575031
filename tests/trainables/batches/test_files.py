from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.trainables.images import smooth_images
from trainables.batches import ImageFiles

FORMATS = ("jpg", "png", "bmp", "webp", "tiff", "ppm")


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = smooth_images(1, 64, seed=seed)[0].transpose(1, 2, 0)
    return Image.fromarray(pixels).resize((width, height))


def folder_of(root: Path, images: int = 12) -> list[Path]:
    """Writes files in all formats, each of another size."""
    paths = [root / f"{index:02d}.{FORMATS[index % len(FORMATS)]}" for index in range(images)]
    for index, path in enumerate(paths):
        photograph(30 + 5 * index, 40, seed=index).save(path)
    return paths


def pixels(path: Path, side: int) -> NDArray[np.uint8]:
    """Returns the central square, decoded at full size and resampled once."""
    image = Image.open(path).convert("RGB")
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return np.asarray(image.resize((side, side), box=(left, top, left + short, top + short))).transpose(2, 0, 1)


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_behaves_like_the_array_of_its_images(tmp_path: Path) -> None:
    paths = folder_of(tmp_path)
    files = ImageFiles(paths, 16)
    whole = files[:]
    assert files.shape == whole.shape == (12, 3, 16, 16)
    assert len(files) == 12
    assert files.nbytes == whole.nbytes
    assert whole.dtype == np.uint8
    assert whole.flags.c_contiguous
    assert all(distance(image, pixels(path, 16)) <= 2 for image, path in zip(whole, paths, strict=True))
    for some in (slice(3), slice(9, 2, -3), slice(0), np.array([5, 0, 5]), np.arange(12) % 2 == 0):
        assert np.array_equal(files[some], whole[some])
    assert np.array_equal(files[np.array([7, 1])], whole[[7, 1]])
    assert np.array_equal(files.decode(4), whole[4])


def test_results_do_not_depend_on_the_number_of_decoders(tmp_path: Path) -> None:
    paths = folder_of(tmp_path)
    one, many = (ImageFiles(paths, 16, decoders=decoders)[:] for decoders in (1, 6))
    assert np.array_equal(one, many)


def test_a_subset_is_not_decoded(tmp_path: Path) -> None:
    paths = folder_of(tmp_path)
    whole = ImageFiles(paths, 16)
    order = np.array([8, 3, 3, 11])
    subset = whole.subset(order)
    assert np.array_equal(subset[:], whole[order])
    paths[0].unlink()
    assert len(whole.subset(np.array([0]))) == 1


@pytest.mark.parametrize("size", [(1200, 800), (801, 1203)])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "large.jpg"
    photograph(*size).save(path, quality=95)
    for side in (32, 100, 500, 900):
        assert distance(ImageFiles([path], side)[:][0], pixels(path, side)) <= 2


def test_pickles_are_small(tmp_path: Path) -> None:
    paths = folder_of(tmp_path)
    files = ImageFiles(paths * 100, 16, decoders=2)
    sent = pickle.dumps(files, protocol=5)
    assert len(sent) < 1000 + len(files) * len(str(paths[0])) * 1.1
    assert np.array_equal(pickle.loads(sent)[:12], files[:12])


def test_file_names_may_be_any_bytes(tmp_path: Path) -> None:
    names = [os.fsencode(tmp_path) + b"/\xff\xfe.png", os.fsencode(tmp_path / "größe 1.png")]
    for name in names:
        photograph(20, 20).save(os.fsdecode(name))
    assert ImageFiles(names, 8)[:].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "missing", "folder"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_unreadable_image_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    paths = folder_of(tmp_path)
    bad = tmp_path / f"bad.{suffix}"
    photograph(90, 60).save(bad)
    content = bad.read_bytes()
    bad.unlink()
    if damage == "folder":
        bad.mkdir()
    elif damage != "missing":
        bad.write_bytes({"text": b"no image", "truncated": content[: len(content) // 2], "empty": b""}[damage])
    files = ImageFiles([*paths, bad], 16)
    assert len(files[:-1]) == 12
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        files[:]
    assert str(caught.value).startswith(str(bad))
    assert "\n" not in str(caught.value)
