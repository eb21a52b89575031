"""Surveys image files: reads headers, and samples values of images with more than 8 bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.batches.decoding import (
    Pixels,
    Range,
    UnreadableImageError,
    is_deep,
    open_image,
    rawmode,
    values,
)

#: Maximum number of headers read unless all files are checked; takes one or two seconds.
HEADERS = 10_000
#: Number of images sampled, and of values per image.
_SAMPLE, _VALUES = 64, 4096
#: Usual bit depths of cameras and scanners.
_BITS = (8, 10, 12, 14, 16)
#: If nearly all values are in a smaller fraction of the range, images look dark or flat.
_USED = 0.25
#: An image that spans a smaller fraction of the range has fewer than 16 grey levels.
_NARROW = 1 / 16
_THREADS = 8

_WORDS = {"1": "bilevel", "L": "grey", "LA": "grey with alpha", "P": "palette", "I": "integer grey", "F": "float grey"}
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Header:
    """Header of an image file; ``error`` is the reason if it cannot be read."""

    path: str
    kind: str = ""
    deep: str = ""  # "integers", "floats", or "" for 8 bits
    size: tuple[int, int] = (0, 0)
    several: bool = False
    transparent: bool = False
    error: str = ""


@dataclass(frozen=True)
class Survey:
    """Result of ``survey``."""

    pixels: Pixels  # how to decode the files
    unreadable: dict[str, str]  # reason for each file that cannot be decoded, by path
    lines: tuple[str, ...]  # descriptions of the files


def survey(
    paths: Sequence[str],
    side: int,
    *,
    decode_all: bool = False,
    background: tuple[int, int, int] = (255, 255, 255),
    value_range: Range | None = None,
) -> Survey:
    """Reads the headers of the files, or of 10,000 evenly spaced ones; with ``decode_all``, decodes all files.

    Images will be resized to ``side`` pixels. ``value_range`` is (black, white) of images with more than 8 bits; None:
    estimated from a sample.
    """
    opened = paths if decode_all else _some(paths, HEADERS)
    headers = _in_threads(lambda path: _examine(path, whole=decode_all), opened)
    found = [header for header in headers if not header.error]
    lines = []
    if len(opened) < len(paths):
        lines.append(f"checked {len(opened):,} evenly spaced files; the following lines describe these")
    if found:
        kinds = Counter(header.kind for header in found).most_common()
        lines += [_sizes(found, side), "modes: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds)]
    pixels = Pixels(background=background)
    if value_range is not None:  # also for files that are not opened here
        pixels = replace(pixels, integers=value_range, floats=value_range)
    for deep in ("integers", "floats"):
        if some := [header.path for header in found if header.deep == deep]:
            chosen, line = _value_range(deep, some, value_range)
            pixels = replace(pixels, integers=chosen) if deep == "integers" else replace(pixels, floats=chosen)
            lines.append(line)
    if value_range is not None and not any(header.deep for header in found):
        lines.append("dataset.value_range has no effect: no image has more than 8 bits")
    if some := [header.path for header in found if header.kind.startswith("16-bit") and not header.deep]:
        lines.append(_sixteen_bit_colour(some))
    if transparent := sum(header.transparent for header in found):
        colour = "#{:02x}{:02x}{:02x}".format(*background)
        lines.append(f"{transparent:,} images with transparency: background {colour} (dataset.background)")
    if several := sum(header.several for header in found):
        lines.append(f"{several:,} files with several frames or pages: the first is used")
    unreadable = {header.path: header.error for header in headers if header.error}
    return Survey(pixels, unreadable, tuple(lines))


def _examine(path: str, *, whole: bool) -> Header:
    try:
        with open_image(path) as image:
            deep = ("floats" if image.mode == "F" else "integers") if is_deep(image) else ""
            several = bool(getattr(image, "is_animated", False))
            header = Header(path, _kind(image), deep, image.size, several, image.has_transparency_data)
            if whole:
                image.load()
            return header
    except UnreadableImageError as error:
        return Header(path, error=error.why)


def _kind(image: Image.Image) -> str:
    if image.mode.startswith("I;16"):
        return "16-bit grey"
    words = _WORDS.get(image.mode, image.mode)
    return f"16-bit {words}" if ";16" in rawmode(image) else words


def _sizes(headers: Sequence[Header], side: int) -> str:
    sizes = sorted((header.size for header in headers), key=lambda size: (size[0] * size[1], size))
    few = list(dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1])))
    text = "size" if len(few) == 1 else "smallest, median and largest size" if len(few) == 3 else "sizes"
    small = sum(min(size) < side for size in sizes)
    enlarged = f"; {small:,} are upsampled" if small else ""
    written = ", ".join(f"{width:,} x {height:,}" for width, height in few)
    return f"{text}: {written} pixels; center-cropped and resized to {side} x {side} (dataset.image_size){enlarged}"


def _value_range(deep: str, paths: Sequence[str], given: Range | None) -> tuple[Range, str]:
    """The (black, white) range and a line that describes it."""
    images = f"{len(paths):,} images with more than 8 bits ({deep})"
    if given is not None:
        return given, f"{images}: black = {given[0]:,g}, white = {given[1]:,g} (dataset.value_range)"
    some = [found for found in _sampled(paths, _values_of) if len(found)]
    if not some:
        return (0, 1) if deep == "floats" else (0, 65535), f"{images}; no sample could be decoded"
    pool = np.concatenate(some)
    least, most = float(pool.min()), float(pool.max())
    low, high = _whole_value_range(deep, least, most)
    count = min(len(paths), _SAMPLE)
    text = f"{images}: black = {low:,g}, white = {high:,g}; values of {count} samples: {least:,g} to {most:,g}"
    dark, bright = (float(value) for value in np.percentile(pool, (0.1, 99.9)))
    if bright - dark < _USED * (high - low) and bright > dark:
        text += f"; 99.8 % are in {dark:,g} to {bright:,g}: try dataset.value_range=[{dark:g},{bright:g}]"
    elif narrow := sum(np.ptp(numbers) < _NARROW * (high - low) for numbers in some):
        text += f"; {narrow} of them span less than 1/16 of the range and will look flat"
    return (low, high), text


def _whole_value_range(deep: str, least: float, most: float) -> Range:
    """The range of the data type or bit depth if the values fit, else their minimum and maximum."""
    if deep == "floats" and least >= 0 and most <= 1:
        return 0, 1
    if deep == "integers" and least >= 0:
        for bits in _BITS:
            if most < 2**bits:
                return 0, 2**bits - 1
    return least, most if most > least else least + 1


def _values_of(image: Image.Image) -> NDArray[np.float64]:
    """A sample of an image's values with minimum and maximum."""
    numbers = values(image).ravel()
    if numbers.dtype.kind == "f":
        numbers = numbers[np.isfinite(numbers)]
    extremes = [numbers.min(), numbers.max()] if len(numbers) else []
    return np.array([*numbers[:: max(len(numbers) // _VALUES, 1)], *extremes], dtype=np.float64)


def _sixteen_bit_colour(paths: Sequence[str]) -> str:
    text = f"{len(paths):,} images of 16 bits per channel: the upper 8 bits are used"
    most = max(_sampled(paths, lambda image: int(np.asarray(image.convert("RGB")).max())), default=255)
    if most < _USED * 255:
        text += f"; they are at most {most} of 255 and will look black: save them with 8 bits per channel"
    return text


def _sampled(paths: Sequence[str], function: Callable[[Image.Image], Out]) -> list[Out]:
    """Applies a function to a sample of the images, except those that cannot be decoded, which are reported later."""

    def attempt(path: str) -> Out | None:
        try:
            with open_image(path) as image:
                return function(image)
        except UnreadableImageError:
            return None

    return [result for result in _in_threads(attempt, _some(paths, _SAMPLE)) if result is not None]


def spaced(count: int, most: int) -> NDArray[np.int64]:
    """Returns at most ``most`` of ``count`` rows, evenly spaced: images may be sorted by class."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _some(paths: Sequence[str], most: int) -> list[str]:
    return [paths[row] for row in spaced(len(paths), most)]


def _in_threads(function: Callable[[In], Out], arguments: Sequence[In]) -> list[Out]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="reader", initializer=Image.init) as pool:
        return list(pool.map(function, arguments))
