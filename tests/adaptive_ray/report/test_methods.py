"""Plots of adaptive accumulation and sample weights."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from adaptive_ray.report.methods import information, weighted_images, weighted_reports
from trainables.report import TrainingReport


def test_information_over_a_run() -> None:
    picture = information(
        {
            "samples": [100, 200, 300],
            "batches_per_update": [2.0, 3.0, 2.5],
            "information": [0.7, 0.9, 0.8],
            "least_information": [0.5, 0.6, 0.7],
            "images_per_update": [64, 96, 80],
        }
    )
    for title in ("micro-batches per update", "mean micro-batch score (dashed: lowest)", "images per update"):
        assert title in picture
    assert len(re.findall(r'clip-path="url', picture)) >= 4


def report(samples: int, most: list[int], least: list[int]) -> TrainingReport:
    named = {"most": [(i, 1.5) for i in most], "least": [(i, 0.5) for i in least]}
    return TrainingReport(samples_seen=samples, batch_size=32, weighted=named)


def test_the_most_and_least_weighted_are_drawn() -> None:
    """Each image is drawn in its row only, recognized by its grey value."""
    images = np.stack([np.full((1, 8, 8), 10 + 20 * i, np.uint8) for i in range(12)])
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 255  # so that greys are drawn as they are
    first, last = report(100, [0, 1, 2], [3, 4, 5]), report(900, [6, 7, 8], [9, 10, 11])
    picture = np.array(Image.open(io.BytesIO(weighted_images(images, first, last, 1000))).convert("L")).astype(int)
    rows = []
    for index in range(12):
        found = np.argwhere(abs(picture - (10 + 20 * index)) < 2)
        rows.append(np.median(found[:, 0]))
    by_row = [np.mean(rows[start : start + 3]) for start in range(0, 12, 3)]
    assert by_row == sorted(by_row)
    assert all(np.ptp(rows[start : start + 3]) < 5 for start in range(0, 12, 3))


def test_the_first_and_the_last_report_with_weights() -> None:
    plain = TrainingReport(samples_seen=1, batch_size=32)
    early, late = report(2, [0], [1]), report(3, [2], [3])
    assert weighted_reports([plain, early, plain, late]) == (early, late)
    assert weighted_reports([plain]) is None
