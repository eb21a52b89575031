"""Lists the images below a directory without opening files; each file is listed once, even if links point to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from trainables.batches.decoding import shown

#: Names of images by directory, as parts of the path below the root; () is the root.
Tree = dict[tuple[str, ...], list[str]]

#: File extensions of images, lower case.
_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".webp", ".avif"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".tga"),
)
#: System directories, besides hidden ones.
_SYSTEM = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_LISTERS = 16  # threads
_EXAMPLES = 3

_Identity = tuple[int, int]


class Skipped:
    """Counts skipped files by reason, with examples."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, what: str, parts: Sequence[str], count: int = 1) -> None:
        """Adds ``count`` files; ``parts`` is the path of one of them below the root."""
        if not count:
            return
        self._counts[what] = self._counts.get(what, 0) + count
        some = self._examples.setdefault(what, [])
        if len(some) < _EXAMPLES:
            some.append("/".join(parts))

    def lines(self) -> Iterator[str]:
        """One line per reason."""
        for what, count in sorted(self._counts.items(), key=lambda item: -item[1]):
            some = self._examples[what]
            yield f"{what}: {count:,} ({', '.join(map(shown, some))}{', ...' if count > len(some) else ''})"


@dataclass(frozen=True)
class _Listed:
    """A directory: images (name, inode, is link), directories (is link, name, identity), and skipped entries."""

    images: list[tuple[str, int, bool]] = field(default_factory=list)
    folders: list[tuple[bool, str, _Identity]] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)


def list_images(root: Path, skipped: Skipped) -> Tree:
    """Lists the images below ``root``, sorted by name in each directory; includes directories without images.

    Links are followed, but no directory is listed twice and parents of ``root`` are not listed. A file that several
    links point to is listed once, since an image must not be its own negative.
    """
    found: dict[tuple[str, ...], list[tuple[str, int, bool]]] = {}
    seen = {_identity(folder.stat()) for folder in (root, *root.resolve().parents)}
    level: list[tuple[str, ...]] = [()]
    with ThreadPoolExecutor(_LISTERS, thread_name_prefix="lister") as pool:
        while level:
            below = []
            for parts, listed in zip(level, pool.map(_list, (root.joinpath(*parts) for parts in level)), strict=True):
                found[parts] = sorted(listed.images)
                for what, name in sorted(listed.others):
                    skipped.add(what, [*parts, name])
                below += [(link, (*parts, name), identity) for link, name, identity in listed.folders]
            level = []
            for _, parts, identity in sorted(below):  # links last
                if identity in seen:
                    skipped.add("directories linked twice", parts)
                else:
                    seen.add(identity)
                    level.append(parts)
    repeated = _repeated(root, found)
    for parts, name in sorted(repeated):
        skipped.add("files linked twice", [*parts, name])
    return {parts: [name for name, *_ in images if (parts, name) not in repeated] for parts, images in found.items()}


def _list(folder: Path) -> _Listed:
    listed = _Listed()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                _sort(entry, listed)
    except OSError as error:
        listed.others.append((f"directories that cannot be listed ({(error.strerror or 'error').lower()})", ""))
    return listed


def _sort(entry: os.DirEntry[str], listed: _Listed) -> None:
    try:
        if entry.name.startswith(".") or entry.name in _SYSTEM:
            listed.others.append(("hidden files and directories", entry.name))
        elif entry.is_dir():
            listed.folders.append((entry.is_symlink(), entry.name, _identity(entry.stat())))
        elif PurePath(entry.name).suffix.lower() not in _SUFFIXES:
            listed.others.append(("other file types", entry.name))
        elif entry.is_file():
            link = entry.is_symlink()
            listed.images.append((entry.name, entry.stat().st_ino if link else entry.inode(), link))
        else:
            listed.others.append(("broken links and special files", entry.name))
    except OSError:  # a link to itself
        listed.others.append(("broken links and special files", entry.name))


def _repeated(
    root: Path, found: dict[tuple[str, ...], list[tuple[str, int, bool]]]
) -> set[tuple[tuple[str, ...], str]]:
    """Images that are the same file as an earlier one; calls ``stat`` only for files with equal inodes."""
    inodes = np.array([inode for images in found.values() for _, inode, _ in images], dtype=np.uint64)
    numbers, counts = np.unique(inodes, return_counts=True)
    twice = set(numbers[counts > 1].tolist())
    suspects = [
        (link, parts, name) for parts, images in found.items() for name, inode, link in images if inode in twice
    ]
    seen: set[_Identity] = set()
    repeated = set()
    for _, parts, name in sorted(suspects):  # links last
        try:
            state = root.joinpath(*parts, name).stat()
        except OSError:
            continue  # deleted since; decoding reports it
        if _identity(state) in seen:
            repeated.add((parts, name))
        seen.add(_identity(state))
    return repeated


def _identity(state: os.stat_result) -> _Identity:
    return state.st_dev, state.st_ino
