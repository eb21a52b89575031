"""Folders of images as people have them: which files are images, which of them are to train on, and their classes.

Names of files and folders decide; no file is opened. docs/images.md states the rules.
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
    """Images to train on or to test on, ordered by class and path.

    Args:
        paths: Of the files.
        classes: Each one's class; None: unlabelled.
    """

    paths: list[str]
    classes: list[str] | None

    def without(self, unreadable: Collection[str]) -> Part:
        """The same but for some paths."""
        if not unreadable:
            return self
        kept = [row for row, path in enumerate(self.paths) if path not in unreadable]
        return Part([self.paths[row] for row in kept], self.classes and [self.classes[row] for row in kept])


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds.

    Args:
        training: Images to train on.
        test: Images to test on, if there is a folder of them; labelled if ``training`` is, with classes of its.
        notes: What was decided, in sentences.
    """

    training: Part
    test: Part | None
    notes: list[str]


def read_folder(root: Path, skipped: Skipped, *, labelled: bool = True) -> ImageFolder:
    """Finds the images below ``root``.

    Args:
        root: A folder of images, or of a folder for each class, or of ``train`` and ``val`` or ``test`` that are such.
        skipped: Collects what is left out.
        labelled: Whether folders are classes.

    Raises:
        UserError: There is no such folder, no image in it, or it is not clear which images are to train on.
    """
    name = f"dataset.root = {shown(str(root))}"
    if not root.is_dir():
        state = "is a file; unpack it if it is an archive, and" if root.exists() else "no such folder;"
        raise UserError(f"{name}: {state} name a folder of images, or of one folder for each class")
    tree = list_images(root, skipped)
    if not any(tree.values()):
        raise UserError(f"{name}: no images in it ({'; '.join(skipped.lines()) or 'it is empty'})")
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
    """The folders with images to train on and to test on, where the first level says so."""
    tops = {parts[0] for parts, names in tree.items() if parts and names}
    train, validation, test = (
        sorted(top for top in tops if top.casefold() in role) for role in (TRAIN, VALIDATION, TEST)
    )
    held_out = validation or test
    if not train and tops and tops == {*validation, *test}:
        raise UserError(
            f"{name}: holds {' and '.join(f'{top}/' for top in sorted(tops))} and no train/; "
            f"put the images to train on into train/, or name the one folder to train on"
        )
    if not train or not (held_out or tops == set(train)):  # beside other folders, train/ is a class
        return None, None
    if len(train) > 1 or len(held_out) > 1:
        both = train if len(train) > 1 else held_out
        raise UserError(f"{name}: holds {' and '.join(f'{top}/' for top in both)}; keep one of them")
    return train[0], held_out[0] if held_out else None


def _training(folder: Path, tree: Tree, labelled: bool, notes: list[str], skipped: Skipped) -> Part:
    counts = _counts(tree)
    for top in sorted({parts[0] for parts in tree if parts} - counts.keys()):
        skipped.add("folders without images", [top])
    loose, inside = len(tree.get((), [])), sum(counts.values())
    if not labelled:
        notes.append("unlabelled: dataset.labels = none")
    elif not counts:
        notes.append("unlabelled: there are no folders of classes")
    elif len(counts) == 1 and not loose:
        top = shown(next(iter(counts)))
        notes.append(f"unlabelled: all images are in one folder, {top}/; if it holds classes, add it to dataset.root")
    elif len(counts) == 1 or loose > inside:
        notes.append(f"unlabelled: {loose:,} images are in no folder of a class, and {inside:,} are")
    else:
        if loose:
            skipped.add("images in no folder of a class", tree[()][:1], loose)
        return _ordered(folder, {parts: names for parts, names in tree.items() if parts}, classes=True)
    return _ordered(folder, tree, classes=False)


def _test(folder: Path, tree: Tree, training: Part, notes: list[str], skipped: Skipped) -> Part | None:
    where = f"{folder.name}/"
    if training.classes is None:
        notes.append(f"{where} is for testing")
        return _ordered(folder, tree, classes=False)
    known, counts = set(training.classes), _counts(tree)
    if not known & counts.keys():
        skipped.add(f"images in {where}, which has no folder of a class that is trained on", [where], _total(tree))
        notes.append("images to test on are drawn from those to train on")
        return None
    strange = {parts: names for parts, names in tree.items() if names and (not parts or parts[0] not in known)}
    for parts, names in strange.items():
        skipped.add(f"images in {where} of no class that is trained on", [*parts, *names[:1]], len(names))
    notes.append(f"{where} is for testing")
    return _ordered(folder, {parts: names for parts, names in tree.items() if parts not in strange}, classes=True)


def _counts(tree: Tree) -> Counter[str]:
    """Images in each folder of the first level, if there are any."""
    counts: Counter[str] = Counter()
    for parts, names in tree.items():
        if parts and names:
            counts[parts[0]] += len(names)
    return counts


def _total(tree: Tree) -> int:
    return sum(map(len, tree.values()))


def _below(tree: Tree, top: str) -> Tree:
    return {parts[1:]: names for parts, names in tree.items() if parts[:1] == (top,)}


def _ordered(folder: Path, tree: Tree, *, classes: bool) -> Part:
    """As torchvision's ImageFolder orders them, on which the split depends."""
    rows = sorted(
        (parts[0] if classes else "", os.path.join(folder, *parts), names)  # noqa: PTH118 - of a million files
        for parts, names in tree.items()
        if names
    )
    paths = [f"{where}{os.sep}{name}" for _, where, names in rows for name in names]
    return Part(paths, [label for label, _, names in rows for _ in names] if classes else None)
