"""Selects images and labels for the online kNN accuracy."""

from __future__ import annotations

import numpy as np

from adaptive_ray.config.plan import BANK, QUERIES
from adaptive_ray.datasets.dataset import Dataset
from adaptive_ray.datasets.image_survey import spaced
from trainables.batches import ImageFiles
from trainables.data import LabelledImages


def labelled_images(data: Dataset) -> LabelledImages | None:
    """Selects evenly spaced images; files that cannot be decoded are left out.

    Returns:
        None without labels, or if the selected training images are of one class.
    """
    if data.labels is None or data.test_labels is None:
        return None
    rows, tested = spaced(len(data.labels), BANK), spaced(len(data.test_labels), QUERIES)
    images = data.training.images
    if isinstance(images, ImageFiles):
        bank, unreadable = images.readable(rows)
        rows = np.delete(rows, list(unreadable))
    else:
        bank = images[rows]
    if len(np.unique(data.labels[rows])) < 2:
        return None
    return LabelledImages(bank, data.labels[rows], data.test_images[tested], data.test_labels[tested])
