"""Finds training images, test images and classes in a directory tree by names; no file is opened.

See docs/images.md for the rules.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from adaptive_ray.datasets.image_listing import Skipped, Tree, list_images
from adaptive_ray.errors import UserError
from trainables.batches.decoding import shown

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation")
TEST = ("test", "testing")


@dataclass(frozen=True)
class Part:
    """Training or test images, sorted by class and path."""

    paths: list[str]
    classes: list[str] | None  # of each file; None: unlabelled

    def without(self, unreadable: Collection[str]) -> Part:
        """Returns a copy without some paths."""
        if not unreadable:
            return self
        kept = [row for row, path in enumerate(self.paths) if path not in unreadable]
        return Part([self.paths[row] for row in kept], self.classes and [self.classes[row] for row in kept])


@dataclass(frozen=True)
class ImageFolder:
    """Images of a directory."""

    training: Part
    test: Part | None  # if they have their own directory; labelled if ``training`` is
    notes: list[str]  # how the directory was interpreted


def read_folder(root: Path, skipped: Skipped, *, labelled: bool = True) -> ImageFolder:
    """Finds the images below ``root``.

    Args:
        root: Directory of images, of one directory per class, or of ``train`` with ``val`` or ``test``.
        skipped: Collects the files that are skipped.
        labelled: Whether directories are classes.

    Raises:
        UserError: The directory does not exist, contains no images, or the training images are ambiguous.
    """
    name = f"dataset.root = {shown(str(root))}"
    if not root.is_dir():
        state = "is a file; extract it if it is an archive, and" if root.exists() else "no such directory;"
        raise UserError(f"{name}: {state} use a directory of images, or of one directory per class")
    tree = list_images(root, skipped)
    if not any(tree.values()):
        raise UserError(f"{name}: no images found ({'; '.join(skipped.lines()) or 'the directory is empty'})")
    notes: list[str] = []
    train, test = _roles(name, tree)
    if train is None:
        return ImageFolder(_training(root, tree, labelled, notes, skipped), None, notes)
    used = [top for top in (train, test) if top]
    for parts, names in tree.items():
        if parts[:1] not in [(top,) for top in used]:
            skipped.add(f"images outside {' and '.join(f'{top}/' for top in used)}", [*parts, *names[:1]], len(names))
    training = _training(root / train, _below(tree, train), labelled, notes, skipped)
    held_out = test and _test(root / test, _below(tree, test), training, notes, skipped)
    return ImageFolder(training, held_out or None, notes)


def _roles(name: str, tree: Tree) -> tuple[str | None, str | None]:
    """Names of the directories with training and test images, if there are any."""
    tops = {parts[0] for parts, names in tree.items() if parts and names}
    train, validation, test = (
        sorted(top for top in tops if top.casefold() in role) for role in (TRAIN, VALIDATION, TEST)
    )
    held_out = validation or test
    if not train and tops and tops == {*validation, *test}:
        raise UserError(
            f"{name}: contains {' and '.join(f'{top}/' for top in sorted(tops))} but no train/; "
            f"move the training images to train/, or set dataset.root to their directory"
        )
    if not train or not (held_out or tops == set(train)):  # beside other folders, train/ is a class
        return None, None
    if len(train) > 1 or len(held_out) > 1:
        both = train if len(train) > 1 else held_out
        raise UserError(f"{name}: contains {' and '.join(f'{top}/' for top in both)}; keep only one")
    return train[0], held_out[0] if held_out else None


def _training(folder: Path, tree: Tree, labelled: bool, notes: list[str], skipped: Skipped) -> Part:
    counts = _counts(tree)
    for top in sorted({parts[0] for parts in tree if parts} - counts.keys()):
        skipped.add("directories without images", [top])
    loose, inside = len(tree.get((), [])), sum(counts.values())
    if not labelled:
        notes.append("unlabelled: dataset.labels = none")
    elif not counts:
        notes.append("unlabelled: no class directories")
    elif len(counts) == 1 and not loose:
        top = shown(next(iter(counts)))
        notes.append(
            f"unlabelled: all images are in one directory, {top}/; if it contains classes, add it to dataset.root"
        )
    elif len(counts) == 1 or loose > inside:
        notes.append(f"unlabelled: {loose:,} images are outside class directories, and {inside:,} inside")
    else:
        if loose:
            skipped.add("images outside class directories", tree[()][:1], loose)
        return _ordered(folder, {parts: names for parts, names in tree.items() if parts}, classes=True)
    return _ordered(folder, tree, classes=False)


def _test(folder: Path, tree: Tree, training: Part, notes: list[str], skipped: Skipped) -> Part | None:
    where = f"{folder.name}/"
    if training.classes is None:
        notes.append(f"test images: {where}")
        return _ordered(folder, tree, classes=False)
    known, counts = set(training.classes), _counts(tree)
    if not known & counts.keys():
        skipped.add(
            f"images in {where}, which has no class of the training images", [where], sum(map(len, tree.values()))
        )
        notes.append("test images are sampled from the training images")
        return None
    strange = {parts: names for parts, names in tree.items() if names and (not parts or parts[0] not in known)}
    for parts, names in strange.items():
        skipped.add(f"images in {where} whose class has no training images", [*parts, *names[:1]], len(names))
    notes.append(f"test images: {where}")
    return _ordered(folder, {parts: names for parts, names in tree.items() if parts not in strange}, classes=True)


def _counts(tree: Tree) -> Counter[str]:
    """Number of images below each directory of the first level."""
    counts: Counter[str] = Counter()
    for parts, names in tree.items():
        if parts and names:
            counts[parts[0]] += len(names)
    return counts


def _below(tree: Tree, top: str) -> Tree:
    return {parts[1:]: names for parts, names in tree.items() if parts[:1] == (top,)}


def _ordered(folder: Path, tree: Tree, *, classes: bool) -> Part:
    """Sorts the files like torchvision's ImageFolder; the split depends on this order."""
    rows = sorted(
        (parts[0] if classes else "", os.path.join(folder, *parts), names)  # noqa: PTH118 - of a million files
        for parts, names in tree.items()
        if names
    )
    paths = [f"{where}{os.sep}{name}" for _, where, names in rows for name in names]
    return Part(paths, [label for label, _, names in rows for _ in names] if classes else None)
