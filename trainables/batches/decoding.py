"""Decodes an image file to RGB pixels."""

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

#: Formats that Pillow may open. None of their readers starts another program, as the one for EPS does.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")

#: Errors of a disk, a server or this process, not of the image.
_BROKEN = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE}


@dataclass(frozen=True)
class Pixels:
    """Says how pixel values are converted to RGB."""

    background: tuple[int, int, int] = (255, 255, 255)  # RGB colour behind transparent pixels
    #: Values that become black and white in grey images of 16 and 32 bits; values beyond are clipped.
    integers: Range = (0, 65535)
    #: Values that become black and white in floating-point images; NaN becomes black.
    floats: Range = (0, 1)


class UnreadableImageError(ValueError):
    """Raised if an image file is missing or cannot be decoded, with its path and a short reason."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{shown(self.path)} cannot be decoded ({self.why}); fix or remove it"


def decode(path: str, side: int, pixels: Pixels) -> Images:
    """Returns the central square of an image, rotated as its EXIF data says: uint8 [3, side, side].

    Of a file with several images, the first one is decoded.

    Raises:
        UnreadableImageError: The file is missing, corrupt or not an image.
        OSError: The disk or the server failed.
    """
    with open_image(path) as image:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least twice the pixels needed.
        drafted = image.draft("RGB", (2 * side, 2 * side))
        picture = _colour(image, pixels)
        width, height = drafted[1][2:] if drafted else picture.size  # fractions: the last pixels may be padding
        square = _square(picture, width, height, side)
        if square.mode == "RGBA":  # resampled with alpha, which weights the colours
            square = Image.alpha_composite(Image.new("RGBA", square.size, pixels.background), square).convert("RGB")
        turned = _orientation(image)
    if turned != 1:  # rotating the central square is the same and cheaper
        square.info.clear()  # other EXIF data is not needed and may not be writable
        square.getexif()[ExifTags.Base.Orientation] = turned
        square = ImageOps.exif_transpose(square)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


@contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Opens the first image of a file without decoding it.

    Exceptions within the context become ``UnreadableImageError``, unless the disk or the server failed.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            yield image
    except Exception as error:  # Pillow may raise anything for a corrupt file
        if isinstance(error, OSError) and error.errno in _BROKEN:
            raise OSError(error.errno, error.strerror, path) from error  # adds the path
        raise UnreadableImageError(path, _reason(error, path)) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # Pillow may be built without some


def values(image: Image.Image) -> NDArray[Any]:
    """Loads a grey image of more than 8 bits and returns its values [H, W]."""
    # Pillow reads unsigned 32-bit values as signed ones.
    unsigned = rawmode(image).startswith("I;32") and "S" not in rawmode(image)
    image.load()
    numbers = np.asarray(image)
    return numbers.view(np.uint32) if unsigned and numbers.dtype == np.int32 else numbers


def is_deep(image: Image.Image) -> bool:
    """Returns whether an image has values of more than 8 bits: 16-bit or 32-bit grey, or floating point."""
    return image.mode[0] in "IF"


def rawmode(image: Image.Image) -> str:
    """Returns Pillow's raw mode of an image that is not loaded yet, such as ``RGB;16B``, or an empty string."""
    tile = getattr(image, "tile", None)
    how = tile[0][3] if tile else ""
    how = how[0] if isinstance(how, tuple) and how else how
    return how if isinstance(how, str) else ""


def _reason(error: Exception, path: str) -> str:
    """Returns why a file could not be decoded, in one line."""
    if isinstance(error, UnidentifiedImageError):
        empty = not Path(path).stat().st_size if Path(path).exists() else False
        return "the file is empty" if empty else "not an image of a supported format"
    if isinstance(error, Image.DecompressionBombError):
        return f"its header says more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:,.0f} million pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def shown(path: str) -> str:
    """Returns a path in one printable line, with escape sequences for other characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of a loaded image, or 1 (upright) if it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow may raise anything for corrupt EXIF data; the pixels are valid
        return 1


def _colour(image: Image.Image, pixels: Pixels) -> Image.Image:
    """Converts to RGB, or to RGBA if there is transparency."""
    if is_deep(image):
        low, high = pixels.floats if image.mode == "F" else pixels.integers
        scaled = (values(image).astype(np.float32) - low) * (255 / (high - low))
        grey = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    image.load()
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _square(image: Image.Image, width: float, height: float, side: int) -> Image.Image:
    """Resamples the central square of an image of ``width`` x ``height``, which may be padded."""
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((side, side), box=box, reducing_gap=2.0)
