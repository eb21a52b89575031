"""The online kNN accuracy of a run: when it is measured, of what, and that it does not affect training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainables.images import smooth_images
from tests.trainables.runs import CPU, assert_equal, data, run, small, without_clocks
from trainables.data import LabelledImages, TrainingData
from trainables.evaluation.knn import knn_accuracies
from trainables.simclr import SimCLR
from trainables.training.loop import TrainSettings, train

NAME = "online_knn_accuracy"


def labelled() -> TrainingData:
    images = smooth_images(60, 12)
    return replace(data(), labelled=LabelledImages(images[:40], np.arange(40) % 2, images[40:], np.arange(20) % 2))


@pytest.mark.parametrize(
    ("every", "measured"),
    [
        (64, [False, True, False, True]),
        (1, [True] * 4),  # more often than reports
        (50, [False, True, False, True]),  # the first report after 50, and the end after 100
        (128, [False, False, False, True]),
        (1000, [False, False, False, True]),
    ],
)
def test_first_report_after_each_interval_and_the_end(every: int, measured: list[bool]) -> None:
    reports = run(small(knn_every=every), data=labelled())
    assert reports.column("samples_seen") == [32, 64, 96, 128]
    assert [NAME in report for report in reports.metrics] == measured


def test_not_without_labels_or_interval() -> None:
    for reports in (run(small(knn_every=32)), run(small(), data=labelled())):
        assert not any(NAME in report for report in reports.metrics)


def test_is_of_the_averaged_weights(tmp_path: Path) -> None:
    chosen, images = small(knn_every=32), labelled()
    reports = run(chosen, tmp_path, data=images)
    model = SimCLR(TrainSettings.model_validate(chosen).encoder, 3)
    for number in (0, 3):
        model.load_state_dict(reports.state(number)["ema"])
        known = images.labelled
        assert known is not None
        features = [torch.from_numpy(model.encoder.embed(part)) for part in (known.bank, known.images)]
        labels = [torch.from_numpy(part) for part in (known.bank_labels, known.labels)]
        expected = knn_accuracies(features[0], labels[0], features[1], labels[1])["knn"].top1
        assert reports.metrics[number][NAME] == expected


def test_training_and_a_resume_are_not_affected(tmp_path: Path) -> None:
    with_knn, without = run(small(knn_every=64), tmp_path / "with", data=labelled()), run(small(), tmp_path / "without")
    assert_equal(without_clocks(with_knn.state()), without_clocks(without.state()))
    for stopped in (0, 1, 2):
        rest = run(small(knn_every=64), tmp_path / f"{stopped}", with_knn.folder(stopped), data=labelled())
        for resumed, uninterrupted in zip(rest.metrics, with_knn.metrics[stopped + 1 :], strict=True):
            assert_equal(without_clocks(resumed), without_clocks(uninterrupted))


def test_the_returned_encoder_is_in_evaluation_mode() -> None:
    encoder = train(small(knn_every=64), labelled(), lambda *_, **__: None, device=CPU)
    assert not any(module.training for module in encoder.modules())
