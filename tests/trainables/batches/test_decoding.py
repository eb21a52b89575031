"""Tests that all kinds of images are decoded as an image viewer shows them."""

from __future__ import annotations

import errno
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps

from tests.trainables.images import smooth_images
from trainables.batches import ImageFiles, decoding
from trainables.batches.decoding import Pixels, UnreadableImageError, decode

SIDE = 24
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def picture() -> Image.Image:
    """Returns a smooth image without symmetries."""
    return Image.fromarray(smooth_images(1, SIDE)[0].transpose(1, 2, 0).copy())


def shown(path: Path, **pixels: Any) -> NDArray[np.int64]:
    """Decodes an image to int64 [H, W, 3]."""
    return decode(str(path), SIDE, Pixels(**pixels)).transpose(1, 2, 0).astype(np.int64)


def differ(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one, dtype=np.int64) - np.asarray(other, dtype=np.int64)).max())


def tiff(path: Path, pixels: NDArray[Any], sample_format: int) -> Path:
    """Writes a TIFF of one channel of a type that Pillow reads but does not write. 1: unsigned, 2: signed, 3: float."""
    data, (height, width) = pixels.tobytes(), pixels.shape
    tags = {256: width, 257: height, 258: pixels.itemsize * 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def png16(path: Path, pixels: NDArray[np.uint16]) -> Path:
    """Writes a PNG with 16 bits per colour, uint16 [H, W, 3]."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_opaque_images_of_8_bits(tmp_path: Path, mode: str) -> None:
    path, image = tmp_path / "image.tif", picture()
    if mode == "LAB":
        profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    else:
        image = image.convert(mode)
    image.save(path)
    assert Image.open(path).mode == mode
    assert differ(shown(path), image.convert("RGB")) == 0
    assert shown(path).std() > 10
    if mode in ("P", "RGB", "CMYK", "YCbCr", "LAB"):
        assert differ(shown(path), picture()) < 60


@pytest.mark.parametrize("suffix", ["png", "tif", "jp2", "pgm"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_of_16_bits(tmp_path: Path, suffix: str, bits: int) -> None:
    path, top = tmp_path / f"image.{suffix}", 2**bits - 1
    Image.fromarray((RAMP * top).astype(np.uint16)).save(path, **({"irreversible": False} if suffix == "jp2" else {}))
    assert differ(shown(path, integers=(0, top)), (255 * RAMP)[..., None]) <= 1
    assert shown(path).max() == round(top * 255 / 65535)  # the range of the type, unless another is given


@pytest.mark.parametrize(
    ("kind", "sample_format", "low", "high"),
    [
        (">u2", 0, 0, 65535),
        ("<i2", 2, -1024, 3071),
        ("<i4", 2, -2_000_000, 2_000_000_000),
        ("<u4", 1, 0, 4_000_000_000),
        ("<f4", 3, -0.25, 0.75),
    ],
)
def test_other_integer_types(tmp_path: Path, kind: str, sample_format: int, low: float, high: float) -> None:
    path, numbers = tmp_path / "image.tif", (low + RAMP * (high - low)).astype(kind)
    if sample_format:
        tiff(path, numbers, sample_format)
    else:
        Image.fromarray(numbers).save(path)
    assert differ(shown(path, integers=(low, high), floats=(low, high)), (255 * RAMP)[..., None]) <= 1
    half = (low + high) / 2
    clipped = shown(path, integers=(low, half), floats=(low, half))
    assert differ(clipped, np.minimum(510 * RAMP, 255)[..., None]) <= 1


def test_nan_and_infinite_values(tmp_path: Path) -> None:
    numbers = np.full((SIDE, SIDE), 0.5, dtype=np.float32)
    numbers[:8], numbers[8:12], numbers[12:16] = np.nan, np.inf, -np.inf
    Image.fromarray(numbers).save(tmp_path / "image.tif")
    image = shown(tmp_path / "image.tif")
    assert set(np.unique(image[:8])) == set(np.unique(image[12:16])) == {0}
    assert set(np.unique(image[8:12])) == {255}
    assert set(np.unique(image[16:])) == {128}


def test_sixteen_bit_colours_are_reduced_to_eight(tmp_path: Path) -> None:
    pixels = np.asarray(picture()).astype(np.uint16) * 257
    assert differ(shown(png16(tmp_path / "image.png", pixels)), picture()) == 0


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "palette with alpha", "one colour", "gif"])
def test_transparent_pixels_show_the_background(tmp_path: Path, kind: str) -> None:
    path, grey = (
        tmp_path / ("image.gif" if kind == "gif" else "image.png"),
        picture().convert("L").point(lambda v: v | 1),
    )
    alpha = Image.fromarray(np.repeat(np.arange(SIDE) < SIDE // 2, SIDE).reshape(SIDE, SIDE).astype(np.uint8) * 255)
    if kind in ("RGBA", "LA"):
        image = grey.convert(kind)
        image.putalpha(alpha)
        image.save(path)
    elif kind == "palette with alpha":
        with_alpha = grey.convert("RGBA")
        with_alpha.putalpha(alpha)
        with_alpha.quantize(64).save(path)
        assert Image.open(path).mode == "P"
    else:
        opaque = Image.composite(grey, Image.new("L", grey.size, 0), alpha)  # 0 is nowhere else
        opaque = opaque if kind == "one colour" else opaque.convert("P")
        opaque.save(path, transparency=0)
    white, red = shown(path), shown(path, background=(255, 0, 0))
    assert (white[SIDE // 2 :] == 255).all()
    assert (red[SIDE // 2 :] == (255, 0, 0)).all()
    assert np.array_equal(white[: SIDE // 2], red[: SIDE // 2])
    assert differ(white[: SIDE // 2, :, 0], np.asarray(grey)[: SIDE // 2]) <= (20 if "palette with" in kind else 0)


def test_alpha_weights_colours_in_resampling(tmp_path: Path) -> None:
    """The colour of a fully transparent pixel has no effect."""
    image = Image.new("RGBA", (2 * SIDE, 2 * SIDE), (0, 255, 0, 255))
    image.paste((255, 0, 0, 0), (0, 0, 2 * SIDE, SIDE // 2))
    image.putpixel((0, 0), (0, 0, 0, 128))
    image.save(tmp_path / "image.png")
    small = shown(tmp_path / "image.png", background=(0, 0, 255))
    assert small[..., 0].max() == 0
    assert small[0, -1].tolist() == [0, 0, 255]
    assert small[-1, -1].tolist() == [0, 255, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    path, wide = tmp_path / f"image.{suffix}", picture().resize((3 * SIDE, 2 * SIDE))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    wide.save(path, exif=exif, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert upright.size == (wide.size if orientation < 5 else wide.size[::-1])
    box = ((upright.width - 2 * SIDE) / 2, (upright.height - 2 * SIDE) / 2)
    expected = upright.resize((SIDE, SIDE), box=(*box, box[0] + 2 * SIDE, box[1] + 2 * SIDE))
    assert differ(shown(path), expected) <= 2


def test_corrupt_exif_data_is_ignored(tmp_path: Path) -> None:
    picture().save(tmp_path / "image.jpg", exif=b"Exif\0\0none of this is EXIF", quality=95)
    assert differ(shown(tmp_path / "image.jpg"), picture()) < 30


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_of_several_images_is_decoded(tmp_path: Path, suffix: str) -> None:
    path, first = tmp_path / f"image.{suffix}", picture().convert("P").convert("RGB")
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(
        path, save_all=True, append_images=[Image.new("RGB", first.size, c) for c in ("black", "red")], **options
    )
    assert Image.open(path).n_frames == 3
    assert differ(shown(path), first) == 0


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose disk is broken")
def test_a_disk_error_is_not_an_unreadable_image() -> None:
    with pytest.raises(OSError, match="error") as caught:
        shown(Path("/proc/self/mem"))  # its first byte cannot be read
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == "/proc/self/mem"


def test_no_reader_starts_another_program(tmp_path: Path) -> None:
    """Pillow would run Ghostscript for a PostScript file of any name."""
    picture().save(tmp_path / "image.eps")
    (tmp_path / "image.eps").rename(tmp_path / "image.png")
    with pytest.raises(UnreadableImageError, match="not an image of a supported format"):
        shown(tmp_path / "image.png")


def test_pillow_may_lack_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF")
    decoding._formats.cache_clear()
    picture().save(tmp_path / "image.tga")
    (tmp_path / "text.avif").write_text("no image")
    try:
        assert differ(shown(tmp_path / "image.tga"), picture()) == 0
        with pytest.raises(UnreadableImageError, match="not an image of a supported"):
            shown(tmp_path / "text.avif")
    finally:
        decoding._formats.cache_clear()


def test_pixel_settings_are_kept_by_subsets_and_pickles(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray((RAMP * 4095).astype(np.uint16)).save(tmp_path / f"{index}.png")
    plain, scaled = (ImageFiles(sorted(tmp_path.iterdir()), SIDE, pixels=p) for p in (None, Pixels(integers=(0, 4095))))
    assert plain[:].max() == 16
    assert scaled[:].max() == scaled.subset(np.array([2]))[:].max() == 255
    assert list(plain.stamps()) != list(scaled.stamps())


def test_readable_images_are_returned(tmp_path: Path) -> None:
    for index in range(4):
        picture().save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    files = ImageFiles(sorted(tmp_path.iterdir()), SIDE)
    images, unreadable = files.readable(np.array([3, 0, 1, 2]))
    assert np.array_equal(images, files[::2])
    assert {row: (Path(error.path).name, error.why) for row, error in unreadable.items()} == {
        0: ("3.png", "image file is truncated"),
        2: ("1.png", "the file is empty"),
    }
