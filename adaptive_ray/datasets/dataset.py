"""Loads a data set: training images in memory or on disk, reference images and test images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from adaptive_ray.config.dataset import DatasetSettings
from adaptive_ray.datasets.arrays import ARRAY_DATASETS, Images, Labels
from adaptive_ray.datasets.image_folders import Part, read_folder
from adaptive_ray.datasets.image_listing import Skipped
from adaptive_ray.datasets.image_survey import survey
from adaptive_ray.errors import UserError
from trainables.batches import ImageFiles
from trainables.batches.decoding import shown
from trainables.data import TrainingData
from trainables.training.host_memory import free_memory

Rows = NDArray[np.int64]

#: Maximum number of classes that are listed by name.
_NAMED = 8


@dataclass(frozen=True)
class Dataset:
    """uint8 images [n, C, H, W] with labels."""

    name: str
    training: TrainingData  # training images and reference images
    labels: Labels | None  # of the training images; None: unlabelled, or a single class
    test_images: Images
    test_labels: Labels | None  # None if the training images have none
    summary: tuple[str, ...] = ()  # lines that describe the data set and what was skipped
    unreadable: Mapping[str, str] = field(default_factory=dict)  # reason for each file that could not be decoded

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.training.images.shape
        return channels, height, width


@dataclass(frozen=True)
class _Source:
    """A data set before it is split; ``test`` is None if test images are sampled from ``images``."""

    images: Images | ImageFiles
    labels: Labels | None
    test: tuple[Images | ImageFiles, Labels | None] | None
    classes: list[str]
    lines: list[str] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    unreadable: dict[str, str] = field(default_factory=dict)

    def leave_out(self, root: Path, path: str, why: str) -> None:
        """Records a file that cannot be decoded."""
        self.unreadable[path] = why
        self.skipped.add("files that cannot be decoded", [f"{os.path.relpath(path, root)}: {why}"])


def load_dataset(settings: DatasetSettings, seed: int) -> Dataset:
    """Loads a data set and splits it with ``seed``.

    Files that cannot be decoded are skipped and listed in ``summary``. Streamed training images are only decoded
    during training, which fails at a corrupt file; use ``check: pixels`` to find these before.

    Raises:
        UserError: Files are missing or cannot be downloaded, there are too few images, or the held-out images do not
            fit into memory.
    """
    source = _folder(settings) if settings.name == "image_folder" else _arrays(settings)
    images = source.images
    order = np.random.default_rng((seed, 1)).permutation(len(images))
    tested = 0 if source.test is not None else max(1, round(settings.test_fraction * len(images)))
    held_out, order = order[: tested + settings.reference_images], order[tested + settings.reference_images :]
    order = order[: settings.limit]
    if len(order) < 16:
        raise UserError(
            f"dataset {settings.name}: {len(order)} of {len(images)} images are left for training after "
            f"{settings.reference_images} reference images{f' and {tested} test images' if tested else ''}; at least "
            f"16 are required; lower dataset.reference_images or add images"
        )
    tests, test_labels = source.test or (images, source.labels)
    test_rows = held_out[:tested] if source.test is None else _drawn(len(tests), settings.test_limit, seed)
    training: Images | ImageFiles
    if isinstance(images, ImageFiles) and _streamed(settings, source, images, len(test_rows), len(order)):
        training = images.subset(order)
    else:
        training, order = _in_memory(images, order, source, settings)
    reference, _ = _in_memory(images, held_out[tested:], source, settings)
    test_images, test_rows = _in_memory(tests, test_rows, source, settings)
    for part, purpose, least in ((training, "training", 16), (reference, "reference", 2), (test_images, "test", 1)):
        if len(part) < least:
            skipped = "; ".join(source.skipped.lines())
            raise UserError(f"dataset {settings.name}: only {len(part)} {purpose} images can be decoded ({skipped})")
    labels, tested_labels, remarks = _classes(source, order, test_labels, test_rows)
    return Dataset(
        name=settings.name,
        training=TrainingData(images=training, reference=reference),
        labels=labels,
        test_images=test_images,
        test_labels=tested_labels,
        summary=(
            f"{settings.name}: {len(training):,} training images, {len(reference)} reference images, "
            f"{len(test_images):,} test images",
            *_composition(source),
            *source.lines,
            *remarks,
            *_flat(source, reference),
            *(f"skipped: {line}" for line in source.skipped.lines()),
        ),
        unreadable=source.unreadable,
    )


def _classes(
    source: _Source, rows: Rows, test_labels: Labels | None, test_rows: Rows
) -> tuple[Labels | None, Labels | None, list[str]]:
    """Training labels, test labels, and lines about their classes."""
    if source.labels is None or test_labels is None:
        return None, None, []
    labels, tested = source.labels[rows], test_labels[test_rows]
    trained_on, tested_on = set(labels.tolist()), set(tested.tolist())
    if len(trained_on) == 1:
        name = shown(source.classes[trained_on.pop()])
        return None, None, [f"all training images have the same class, {name}; treated as unlabelled"]
    remarks = []
    if len(tested_on) == 1:
        remarks.append(f"all test images have the same class, {shown(source.classes[tested_on.pop()])}")
    if missing := [shown(source.classes[label]) for label in sorted(tested_on - trained_on)]:
        remarks.append(
            f"classes with test images but no training images: {len(missing):,} "
            f"({', '.join(missing[:_NAMED])}{', ...' if len(missing) > _NAMED else ''})"
        )
    return labels, tested, remarks


def _composition(source: _Source) -> Iterator[str]:
    if source.labels is None:
        return
    counts = np.bincount(source.labels, minlength=len(source.classes)).tolist()
    if len(counts) <= _NAMED:
        each = ", ".join(f"{shown(name)} {count:,}" for name, count in zip(source.classes, counts, strict=True))
    else:
        each = f"{f'{min(counts):,} to ' if min(counts) < max(counts) else ''}{max(counts):,} images each"
    yield f"{len(counts):,} classes: {each}"


def _flat(source: _Source, images: Images) -> Iterator[str]:
    """Reports images of a constant colour, which indicate a wrong value range or format."""
    if isinstance(source.images, ImageFiles):
        values = images.reshape(*images.shape[:2], -1)
        if flat := int((values.min(2) == values.max(2)).all(1).sum()):
            yield f"{flat:,} of {len(images):,} sampled images have a constant colour"


def _drawn(count: int, limit: int, seed: int) -> Rows:
    """At most ``limit`` rows of a test set, sampled with ``seed``, sorted."""
    return np.sort(np.random.default_rng((seed, 2)).permutation(count)[:limit])


def _streamed(settings: DatasetSettings, source: _Source, files: ImageFiles, tested: int, training: int) -> bool:
    """Whether training images are streamed. Held-out images never are; raises if they do not fit into memory."""
    each, available = files.nbytes / len(files), free_memory()
    held_out, setting = settings.reference_images + tested, "test_fraction" if source.test is None else "test_limit"
    if held_out * each > available / 2:
        raise UserError(
            f"dataset.{setting} = {getattr(settings, setting):g}: {held_out:,} held-out images need "
            f"{held_out * each / 1e9:.1f} GB, more than half of the available {available / 1e9:.1f} GB of memory; "
            f"lower it or dataset.image_size"
        )
    return training * each > available / 2 if settings.stream == "auto" else settings.stream


def _in_memory(
    images: Images | ImageFiles, rows: Rows, source: _Source, settings: DatasetSettings
) -> tuple[Images, Rows]:
    """Decodes the images of ``rows``; returns them and the rows that could be decoded."""
    if not isinstance(images, ImageFiles):
        return np.ascontiguousarray(images[rows]), rows
    decoded, unreadable = images.readable(rows)
    for error in unreadable.values():
        source.leave_out(settings.root, error.path, error.why)
    return decoded, np.delete(rows, list(unreadable))


def _arrays(settings: DatasetSettings) -> _Source:
    (images, labels), test = ARRAY_DATASETS[settings.name](settings)
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    if settings.labels == "auto":
        return _Source(images, labels, test, classes)
    return _Source(images, None, test and (test[0], None), [], ["unlabelled: dataset.labels = none"])


def _folder(settings: DatasetSettings) -> _Source:
    skipped = Skipped()
    folder = read_folder(settings.root, skipped, labelled=settings.labels == "auto")
    colour, given = ImageColor.getrgb(settings.background), settings.value_range
    found = survey(
        [*folder.training.paths, *(folder.test.paths if folder.test else ())],
        settings.image_size,
        decode_all=settings.check == "pixels",
        background=(colour[0], colour[1], colour[2]),
        value_range=(given[0], given[1]) if given else None,
    )
    numbers = {name: label for label, name in enumerate(sorted(set(folder.training.classes or ())))}
    decoders = None if settings.decoder_threads == "auto" else settings.decoder_threads

    def of(part: Part) -> tuple[ImageFiles, Labels | None]:
        part = part.without(found.unreadable)
        files = ImageFiles(part.paths, settings.image_size, decoders=decoders, pixels=found.pixels)
        return files, None if part.classes is None else np.array([numbers[name] for name in part.classes], np.int64)

    test = of(folder.test) if folder.test else None
    source = _Source(*of(folder.training), test, list(numbers), [*folder.notes, *found.lines], skipped)
    for path, why in found.unreadable.items():
        source.leave_out(settings.root, path, why)
    return source
