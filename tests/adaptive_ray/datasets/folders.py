"""Small folders of images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def images(folder: Path, count: int = 3, *, first: int = 0) -> Path:
    """Creates a directory with ``count`` different images."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        Image.new("RGB", (9, 9), (index, 0, 0)).save(folder / f"{index:03d}.png")
    return folder
