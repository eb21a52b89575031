from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from adaptive_ray.config.plan import BANK, QUERIES
from adaptive_ray.datasets.dataset import Dataset
from adaptive_ray.datasets.labelled_images import labelled_images
from trainables.batches import ImageFiles
from trainables.data import TrainingData


def dataset(images: int, tests: int) -> Dataset:
    """Images whose pixels equal their labels; the held-out ones are sorted by class."""
    labels, tested = np.arange(images) % 5, np.sort(np.arange(tests) % 5)
    pixels = [np.broadcast_to(of[:, None, None, None], (len(of), 3, 4, 4)).astype(np.uint8) for of in (labels, tested)]
    return Dataset("made", TrainingData(pixels[0], pixels[0][:8]), labels, pixels[1], tested)


def test_a_bounded_number_of_every_class_with_its_labels() -> None:
    found = labelled_images(dataset(5000, 3000))
    assert found is not None
    assert (found.bank.shape, found.images.shape) == ((BANK, 3, 4, 4), (QUERIES, 3, 4, 4))
    for images, labels in ((found.bank, found.bank_labels), (found.images, found.labels)):
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
        assert np.bincount(labels).min() > 0.8 * len(labels) / 5


def test_all_of_few_images() -> None:
    found = labelled_images(dataset(50, 7))
    assert found is not None
    assert (len(found.bank), len(found.images)) == (50, 7)


def test_none_without_labels_or_with_one_class() -> None:
    data = dataset(50, 7)
    assert labelled_images(replace(data, labels=None, test_labels=None)) is None
    assert labelled_images(replace(data, labels=np.zeros(50, np.int64))) is None


def test_corrupt_files_are_left_out(tmp_path: Path) -> None:
    data = dataset(20, 7)
    for row, image in enumerate(np.asarray(data.training.images)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{row:02}.png")
    (tmp_path / "03.png").write_bytes(b"no image")
    files = ImageFiles(sorted(tmp_path.glob("*.png")), 4)
    found = labelled_images(replace(data, training=TrainingData(files, data.training.reference)))
    assert found is not None
    assert len(found.bank) == 19
    np.testing.assert_array_equal(found.bank[:, 0, 0, 0], found.bank_labels)
