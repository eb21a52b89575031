"""One image file to RGB pixels: what is done with each kind of image that people have."""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Images = NDArray[np.uint8]
Range = tuple[float, float]

#: Pillow's readers that may open a file of any name: none of them starts another program, as the one for EPS does.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")


#: Errors of a disk, a server or this process.
_BROKEN = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE}


@dataclass(frozen=True)
class Pixels:
    """What the values in a file mean.

    Args:
        background: RGB, under what is transparent.
        integers: What becomes black and white in grey images of 16 and 32 bits; values beyond are clipped.
        floats: The same of floating-point images; NaN becomes black.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    integers: Range = (0, 65535)
    floats: Range = (0, 1)


class UnreadableImageError(ValueError):
    """A file is missing or holds no readable image.

    Args:
        path: Of the file.
        why: In a few words.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{shown(self.path)} is no readable image ({self.why}); replace or remove it"


def decode(path: str, side: int, pixels: Pixels) -> Images:
    """The central square of an image, upright as its EXIF says: uint8 [3, side, side].

    The first picture of a file with several is taken.

    Raises:
        UnreadableImageError: The file is missing or damaged, or no image.
        OSError: The disk or server that it is on does not work, which says nothing about the image.
    """
    with refused(path), open_image(path) as image:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves twice the pixels that are needed.
        drafted = image.draft("RGB", (2 * side, 2 * side))
        picture = _colour(image, pixels)
        width, height = drafted[1][2:] if drafted else picture.size  # fractions: its last pixels may be padding
        square = _square(picture, width, height, side)
        if square.mode == "RGBA":  # resampled with its alpha, which weighs the colours
            square = Image.alpha_composite(Image.new("RGBA", square.size, pixels.background), square).convert("RGB")
        turned = _orientation(image)
    if turned != 1:  # the central square of a turned image is its turned central square, which is smaller
        square.info.clear()  # no EXIF but this is needed, and some cannot be written again
        square.getexif()[ExifTags.Base.Orientation] = turned
        square = ImageOps.exif_transpose(square)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


@contextmanager
def refused(path: str) -> Iterator[None]:
    """Turns what reading a file raises into an ``UnreadableImageError``, unless the disk or server failed."""
    try:
        yield
    except Exception as error:  # Pillow raises whatever reading a damaged file raises
        if isinstance(error, OSError) and error.errno in _BROKEN:
            raise OSError(error.errno, error.strerror, path) from error  # reading names no file
        raise UnreadableImageError(path, _reason(error, path)) from error


def open_image(path: str) -> Image.Image:
    """A file's first picture, not decoded yet."""
    return Image.open(path, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # not every Pillow has been built with all


def values(image: Image.Image) -> NDArray[Any]:
    """The numbers [H, W] in a grey image of more than 8 bits; it is loaded by this."""
    # Pillow has no unsigned 32 bits, and reads them as signed ones.
    unsigned = rawmode(image).startswith("I;32") and "S" not in rawmode(image)
    image.load()
    numbers = np.asarray(image)
    return numbers.view(np.uint32) if unsigned and numbers.dtype == np.int32 else numbers


def is_deep(image: Image.Image) -> bool:
    """Whether its values are numbers of more than 8 bits: grey of 16 or 32 bits, or floating point."""
    return image.mode[0] in "IF"


def rawmode(image: Image.Image) -> str:
    """How an image that is not loaded yet is stored, such as ``RGB;16B``; empty where Pillow does not say."""
    tile = getattr(image, "tile", None)
    how = tile[0][3] if tile else ""
    how = how[0] if isinstance(how, tuple) and how else how
    return how if isinstance(how, str) else ""


def _reason(error: Exception, path: str) -> str:
    """Why a file could not be decoded: a few words in one line."""
    if isinstance(error, UnidentifiedImageError):
        empty = not Path(path).stat().st_size if Path(path).exists() else False
        return "the file is empty" if empty else "no image, or of a kind that is not supported"
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:,.0f} million pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def shown(path: str) -> str:
    """A path for a person: in one line, with escapes for what cannot be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


def _orientation(image: Image.Image) -> int:
    """EXIF's, of an image that has been loaded; 1 (upright) where it has none that can be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises whatever damaged EXIF makes it raise; the pixels are whole
        return 1


def _colour(image: Image.Image, pixels: Pixels) -> Image.Image:
    """As RGB, or as RGBA if parts are transparent."""
    if is_deep(image):
        low, high = pixels.floats if image.mode == "F" else pixels.integers
        scaled = (values(image).astype(np.float32) - low) * (255 / (high - low))
        grey = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    image.load()
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _square(image: Image.Image, width: float, height: float, side: int) -> Image.Image:
    """The central square of the part that is picture, resampled."""
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((side, side), box=box, reducing_gap=2.0)
