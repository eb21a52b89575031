from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adaptive_ray.datasets import image_survey
from adaptive_ray.datasets.image_survey import Survey, survey
from tests.adaptive_ray.datasets.folders import images
from tests.trainables.batches.test_decoding import png16
from trainables.batches import ImageFiles


def of(folder: Path, side: int = 8, **options: Any) -> Survey:
    return survey([str(path) for path in sorted(folder.iterdir())], side, **options)


def deep(folder: Path, *arrays: NDArray[Any]) -> None:
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index}.tif")


def decoded(folder: Path, found: Survey, side: int = 8) -> NDArray[np.uint8]:
    return ImageFiles(sorted(folder.iterdir()), side, pixels=found.pixels)[:]


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("top", "high"), [(200, 255), (1000, 1023), (3071, 4095), (4095, 4095), (4096, 16383), (40_000, 65535)]
)
def test_integers_are_scaled_by_the_bits_that_their_values_need(tmp_path: Path, top: int, high: int) -> None:
    deep(tmp_path, (RAMP * top).astype(np.uint16), (RAMP * top / 2).astype(np.uint16))
    found = of(tmp_path)
    assert found.pixels.integers == (0, high)
    pixels = decoded(tmp_path, found)
    assert pixels[0].max() == round(255 * top / high)
    assert pixels[1].max() == pytest.approx(127.5 * top / high, abs=1)  # one range for all: what is darker stays so
    line = f"2 images with more than 8 bits (integers): black = 0, white = {high:,}; values of 2 samples: 0 to {top:,}"
    assert line in found.lines


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RAMP * 0.8, (0, 1)),
        (RAMP * 300 - 100, (-100, 200)),
        (np.full((8, 8), 7.0), (7, 8)),
        (np.where(RAMP > 0.5, np.nan, RAMP * 10), (0, float(np.float32(RAMP[RAMP <= 0.5].max() * 10)))),
    ],
    ids=["within 0 to 1", "any", "constant", "some NaN"],
)
def test_floats_are_scaled_by_their_values(tmp_path: Path, array: NDArray[Any], expected: tuple[float, float]) -> None:
    deep(tmp_path, array.astype(np.float32))
    found = of(tmp_path)
    assert found.pixels.floats == pytest.approx(expected)
    assert found.pixels.integers == (0, 65535)


def test_signed_integers_are_scaled_by_their_values(tmp_path: Path) -> None:
    deep(tmp_path, (RAMP * 3000 - 1000).astype(np.int32))  # as those of computed tomography
    assert of(tmp_path).pixels.integers == (-1000, 2000)


def test_dark_images_are_reported(tmp_path: Path) -> None:
    dark = (RAMP * 600).astype(np.uint16).repeat(40, 0).repeat(40, 1)
    dark[0, 0] = 65535  # a hot pixel
    deep(tmp_path, dark)
    (line,) = (line for line in of(tmp_path).lines if "(integers)" in line)
    assert "black = 0, white = 65,535" in line
    assert "99.8 % are in 0 to 600: try dataset.value_range=[0,600]" in line
    found = of(tmp_path, value_range=(0, 600))
    assert found.pixels.integers == found.pixels.floats == (0, 600)
    assert decoded(tmp_path, found).mean() > 100
    assert "black = 0, white = 600 (dataset.value_range)" in " ".join(found.lines)


def test_images_of_different_bit_depths_are_reported(tmp_path: Path) -> None:
    deep(tmp_path, *((RAMP * top).astype(np.uint16) for top in (4095, 65535, 65535)))
    (line,) = (line for line in of(tmp_path).lines if "(integers)" in line)
    assert line.endswith("samples: 0 to 65,535; 1 of them span less than 1/16 of the range and will look flat")


def test_a_value_range_without_effect_is_reported(tmp_path: Path) -> None:
    found = of(images(tmp_path), value_range=(0, 100))
    assert "dataset.value_range has no effect: no image has more than 8 bits" in found.lines


def test_dark_images_of_16_bits_per_channel(tmp_path: Path) -> None:
    colours = np.stack([RAMP * 65535, RAMP * 6553, RAMP], axis=2)
    png16(tmp_path / "bright.png", colours.astype(np.uint16))
    assert "1 images of 16 bits per channel: the upper 8 bits are used" in of(tmp_path).lines
    png16(tmp_path / "bright.png", (colours / 16).astype(np.uint16))
    (line,) = (line for line in of(tmp_path).lines if "16 bits per" in line)
    assert "at most 15 of 255 and will look black: save them with 8 bits per channel" in line


def test_headers_are_summarized(tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 6)).save(tmp_path / "b.png")
    black, white = (Image.new("RGB", (40, 40), colour) for colour in ("black", "white"))
    black.save(tmp_path / "c.gif", save_all=True, append_images=[white])
    Image.new("CMYK", (100, 50)).save(tmp_path / "d.jpg")
    found = of(tmp_path, background=(255, 0, 16))
    assert found.lines == (
        "smallest, median and largest size: 8 x 6, 40 x 40, 100 x 50 pixels; center-cropped and resized to 8 x 8 "
        "(dataset.image_size); 1 are upsampled",
        "modes: 1 grey, 1 RGBA, 1 palette, 1 CMYK",
        "1 images with transparency: background #ff0010 (dataset.background)",
        "1 files with several frames or pages: the first is used",
    )
    assert found.unreadable == {}


def test_unreadable_files_are_listed(tmp_path: Path) -> None:
    images(tmp_path)
    whole = (tmp_path / "000.png").read_bytes()
    for name, content in {"a.png": b"", "b.jpg": b"text", "c.png": whole[:20], "d.png": whole[:45]}.items():
        (tmp_path / name).write_bytes(content)
    bad = "not an image of a supported format"
    expected = {str(tmp_path / name): why for name, why in {"a.png": "the file is empty", "b.jpg": bad}.items()}
    found = of(tmp_path).unreadable
    assert {path: found[path] for path in expected} == expected
    assert str(tmp_path / "c.png") in found
    assert str(tmp_path / "d.png") not in found  # its header is valid
    assert of(tmp_path, decode_all=True).unreadable == {**found, str(tmp_path / "d.png"): "image file is truncated"}
    assert survey([str(tmp_path / "none.png")], 8).unreadable == {
        str(tmp_path / "none.png"): "no such file or directory"
    }


def test_without_permission() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # other users cannot access pytest's directory
        folder = images(Path(name))
        folder.chmod(0o755)
        (folder / "001.png").chmod(0)
        if user == 0:  # who may read everything
            os.seteuid(65534)
        try:
            found = of(folder)
        finally:
            os.seteuid(user)
    assert found.unreadable == {str(folder / "001.png"): "permission denied"}


def test_only_some_of_many_files_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_survey, "HEADERS", 5)
    images(tmp_path, 21)
    for index in (3, 7, 10):
        (tmp_path / f"{index:03d}.png").write_bytes(b"")
    found = of(tmp_path)
    assert found.lines[0] == "checked 5 evenly spaced files; the following lines describe these"
    assert [Path(path).name for path in found.unreadable] == ["010.png"]  # of 0, 5, 10, 15 and 20
    assert len(of(tmp_path, decode_all=True).unreadable) == 3
