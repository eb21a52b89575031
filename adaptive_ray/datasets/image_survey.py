"""Finds out what kinds of images there are: reads headers, and a sample of the values that have more than 8 bits."""

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
    refused,
    values,
)

#: Headers that are read unless all are asked for: a second or two where the disk does not hold it up.
HEADERS = 10_000
#: Images of a kind whose values are looked at, and values that are kept of each.
_SAMPLE, _VALUES = 64, 4096
#: What cameras and scanners deliver in integers of 16 or 32 bits.
_BITS = (8, 10, 12, 14, 16)
#: Where a share of the range this small holds nearly all values, pictures are dark or flat.
_USED = 0.25
#: An image that spans less of the range has less than 16 of 256 greys left.
_NARROW = 1 / 16
_THREADS = 8

_WORDS = {"1": "bilevel", "L": "grey", "LA": "grey with alpha", "P": "palette", "I": "integer grey", "F": "float grey"}
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Header:
    """What an image says about itself; ``error`` is why it could not be read."""

    path: str
    kind: str = ""
    deep: str = ""  # integers, floats, or nothing where 8 bits are enough
    size: tuple[int, int] = (0, 0)
    several: bool = False
    transparent: bool = False
    error: str = ""


@dataclass(frozen=True)
class Survey:
    """Of image files.

    Args:
        pixels: How to decode them.
        unreadable: Why some cannot be read, by their paths.
        lines: What was found, in sentences.
    """

    pixels: Pixels
    unreadable: dict[str, str]
    lines: tuple[str, ...]


def survey(
    paths: Sequence[str],
    side: int,
    *,
    decode_all: bool = False,
    background: tuple[int, int, int] = (255, 255, 255),
    value_range: Range | None = None,
) -> Survey:
    """Opens the files, or 10,000 of them that are evenly spread, to read their headers.

    Args:
        paths: Of the files.
        side: Pixels to which they are going to be brought.
        decode_all: Opens all of them, and decodes them too.
        background: RGB, under what is transparent.
        value_range: What becomes black and white in images of more than 8 bits; None: chosen for the values of a
            sample of them.
    """
    opened = paths if decode_all else _spread(paths, HEADERS)
    headers = _in_threads(lambda path: _examine(path, whole=decode_all), opened)
    found = [header for header in headers if not header.error]
    lines = []
    if len(opened) < len(paths):
        lines.append(f"{len(opened):,} files, evenly spread, were opened; the following is about them")
    if found:
        lines += [_sizes(found, side), _kinds(found)]
    pixels = Pixels(background=background)
    if value_range is not None:  # for files, too, that are not opened now
        pixels = replace(pixels, integers=value_range, floats=value_range)
    for deep in ("integers", "floats"):
        if some := [header.path for header in found if header.deep == deep]:
            chosen, line = _range(deep, some, value_range)
            pixels = replace(pixels, integers=chosen) if deep == "integers" else replace(pixels, floats=chosen)
            lines.append(line)
    if value_range is not None and not any(header.deep for header in found):
        lines.append("dataset.value_range changes nothing: no image has more than 8 bits")
    if some := [header.path for header in found if header.kind.startswith("16-bit") and not header.deep]:
        lines.append(_sixteen_bit_colour(some))
    if transparent := sum(header.transparent for header in found):
        lines.append(f"transparency in {transparent:,} images: laid on {_hex(background)} (dataset.background)")
    if several := sum(header.several for header in found):
        lines.append(f"several pictures (animation, pages) in {several:,} files: the first is used")
    unreadable = {header.path: header.error for header in headers if header.error}
    return Survey(pixels, unreadable, tuple(lines))


def _examine(path: str, *, whole: bool) -> Header:
    try:
        with refused(path), open_image(path) as image:
            deep = ("floats" if image.mode == "F" else "integers") if is_deep(image) else ""
            header = Header(path, _kind(image), deep, image.size, _has_several(image), image.has_transparency_data)
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


def _has_several(image: Image.Image) -> bool:
    return bool(getattr(image, "is_animated", False))


def _sizes(headers: Sequence[Header], side: int) -> str:
    sizes = sorted((header.size for header in headers), key=lambda size: (size[0] * size[1], size))
    few = list(dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1])))
    text = "all of one size" if len(few) == 1 else "smallest, middle and largest" if len(few) == 3 else "sizes"
    small = sum(min(size) < side for size in sizes)
    enlarged = f", which enlarges {small:,}" if small else ""
    written = ", ".join(f"{width:,} x {height:,}" for width, height in few)
    return f"{text}: {written} pixels; the central square is brought to {side} x {side} (dataset.image_size){enlarged}"


def _kinds(headers: Sequence[Header]) -> str:
    kinds = Counter(header.kind for header in headers).most_common()
    return "kinds: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds)


def _range(deep: str, paths: Sequence[str], given: Range | None) -> tuple[Range, str]:
    """What becomes black and white, and a sentence about it."""
    numbers = "floating-point numbers" if deep == "floats" else "integers of more than 8 bits"
    images = f"{numbers} in {len(paths):,} images"
    if given is not None:
        return given, f"{images}: {given[0]:,g} becomes black, {given[1]:,g} white (dataset.value_range)"
    sample = _spread(paths, _SAMPLE)
    some = [found for found in _in_threads(_values_of, sample) if found is not None and len(found)]
    if not some:
        return (0, 1) if deep == "floats" else (0, 65535), f"{images}, none of which could be sampled"
    pool = np.concatenate(some)
    least, most = float(pool.min()), float(pool.max())
    low, high = _whole_range(deep, least, most)
    text = f"{images}: {low:,g} becomes black, {high:,g} white; {least:,g} to {most:,g} in {len(sample)} of them"
    dark, bright = (float(value) for value in np.percentile(pool, (0.1, 99.9)))
    if bright - dark < _USED * (high - low) and bright > dark:
        text += f", but nearly all are from {dark:,g} to {bright:,g}: try dataset.value_range=[{dark:g},{bright:g}]"
    elif narrow := sum(np.ptp(numbers) < _NARROW * (high - low) for numbers in some):
        text += f", but {narrow} of them span less than a sixteenth of it and will look flat"
    return (low, high), text


def _whole_range(deep: str, least: float, most: float) -> Range:
    """Of a type or a camera where the values are of one, else theirs."""
    if deep == "floats" and least >= 0 and most <= 1:
        return 0, 1
    if deep == "integers" and least >= 0:
        for bits in _BITS:
            if most < 2**bits:
                return 0, 2**bits - 1
    return least, most if most > least else least + 1


def _values_of(path: str) -> NDArray[np.float64] | None:
    """The extremes of an image's values, and some between them; None if it is damaged."""
    try:
        with refused(path), open_image(path) as image:
            numbers = values(image).ravel()
    except UnreadableImageError:  # decoding the image reports what is wrong with it
        return None
    if numbers.dtype.kind == "f":
        numbers = numbers[np.isfinite(numbers)]
    extremes = [numbers.min(), numbers.max()] if len(numbers) else []
    return np.array([*numbers[:: max(len(numbers) // _VALUES, 1)], *extremes], dtype=np.float64)


def _sixteen_bit_colour(paths: Sequence[str]) -> str:
    text = f"16 bits a colour in {len(paths):,} images: the upper 8 are read"
    most = max((most for most in _in_threads(_brightest, _spread(paths, _SAMPLE)) if most is not None), default=255)
    if most < _USED * 255:
        text += f", and are at most {most} of 255, which looks black: save them with 8 bits a colour"
    return text


def _brightest(path: str) -> int | None:
    try:
        with refused(path), open_image(path) as image:
            return int(np.asarray(image.convert("RGB")).max())
    except UnreadableImageError:  # decoding the image reports what is wrong with it
        return None


def _spread(paths: Sequence[str], count: int) -> Sequence[str]:
    """At most so many, evenly spread, hence of all classes."""
    if len(paths) <= count:
        return paths
    return [paths[row] for row in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def _in_threads(function: Callable[[In], Out], arguments: Sequence[In]) -> list[Out]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="reader", initializer=Image.init) as pool:
        return list(pool.map(function, arguments))


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
