"""Evaluation of an encoder on real digits: a part that fails does not affect the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adaptive_ray.config.loading import load_config
from adaptive_ray.datasets.dataset import Dataset, load_dataset
from adaptive_ray.experiment.evaluate import Evaluation, HeldOut, evaluate
from adaptive_ray.experiment.results import write_plots
from adaptive_ray.report.accuracies import ACCURACIES, accuracy_rows, missing
from trainables.batches import ImageFiles
from trainables.data import TrainingData
from trainables.settings import EncoderSettings
from trainables.simclr import Encoder, build_encoder

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    config = load_config(QUICKSTART, ["dataset.limit=120", "dataset.test_fraction=0.02"])
    return load_dataset(config.dataset, 0)


def encoder(channels: int = 1) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderSettings(width=8, depth=1), channels).eval()


def evaluated(data: Dataset, directory: Path, untrained: Callable[[], Encoder] = encoder, **given: Any) -> Evaluation:
    held_out = HeldOut(data.test_images, data.labels, data.test_labels)
    cpu = torch.device("cpu")
    found = evaluate(
        given.get("network") or encoder(), untrained, data.training.images, held_out, limit=100, device=cpu
    )
    write_plots(found, [], data, budget=1, directory=directory)
    return found


def test_labelled_images_have_every_accuracy_and_a_picture(digits: Dataset, tmp_path: Path) -> None:
    found = evaluated(digits, tmp_path)
    assert found.unavailable == {}
    assert found.accuracies["pixel_knn_accuracy"] > 0.4  # chance is 0.1
    assert found.accuracies["probe_accuracy"] == found.accuracies["untrained_probe_accuracy"]  # they are the same here
    assert set(found.accuracies) == set(ACCURACIES)
    assert Image.open(tmp_path / "neighbours.png").size[0] > 100


def test_images_without_labels_have_neighbours(digits: Dataset, tmp_path: Path) -> None:
    found = evaluated(replace(digits, labels=None, test_labels=None), tmp_path)
    assert set(found.accuracies.values()) == {None}
    assert list(missing({"unavailable": found.unavailable})) == [
        "probes: the images are unlabelled or have a single class"
    ]
    assert (tmp_path / "neighbours.png").is_file()
    assert next(accuracy_rows(found.accuracies)) == ["linear classifier", "-", "-", "-"]


def test_images_of_one_class_have_neighbours(digits: Dataset, tmp_path: Path) -> None:
    """A single class, in the data set or only in the training split."""
    found = evaluated(replace(digits, labels=np.zeros_like(digits.labels)), tmp_path)
    assert set(found.accuracies.values()) == {None}
    (line,) = missing({"unavailable": found.unavailable})
    assert line == "probes: all 100 training images of a classifier are of one class"
    assert (tmp_path / "neighbours.png").is_file()


def test_without_an_untrained_encoder_only_its_accuracies_are_missing(digits: Dataset, tmp_path: Path) -> None:
    def gone() -> Encoder:
        return encoder().load_weights(torch.load(tmp_path / "weights.pt"))  # type: ignore[func-returns-value]

    found = evaluated(digits, tmp_path, gone)
    lost = {"untrained_probe_accuracy", "untrained_knn_accuracy", "untrained_knn200_accuracy"}
    assert set(found.unavailable) == lost
    assert "FileNotFoundError" in found.unavailable["untrained_probe_accuracy"]
    assert {name for name, share in found.accuracies.items() if share is None} == lost


def test_a_picture_that_cannot_be_written_is_skipped(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "neighbours.png").mkdir()
    found = evaluated(digits, tmp_path)
    assert list(found.unavailable) == ["neighbours.png"]
    assert "IsADirectoryError" in found.unavailable["neighbours.png"]
    assert None not in found.accuracies.values()


def test_accuracies_of_nan_features_are_missing(digits: Dataset, tmp_path: Path) -> None:
    broken = encoder()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    found = evaluated(digits, tmp_path, network=broken)
    assert found.accuracies["probe_accuracy"] is None
    assert set(found.unavailable) == {"probe_accuracy", "knn_accuracy", "knn200_accuracy", "neighbours.png"}
    assert "NaN" in found.unavailable["probe_accuracy"]
    assert found.accuracies["pixel_probe_accuracy"] is not None


@pytest.fixture
def streamed(digits: Dataset, tmp_path: Path) -> tuple[Dataset, list[Path]]:
    """The digits as files."""
    paths = []
    for index, image in enumerate(digits.training.images[:100]):
        paths.append(tmp_path / f"{index:03d}.png")
        Image.fromarray(np.asarray(image)[0]).save(paths[-1])
    training = TrainingData(images=ImageFiles(map(str, paths), 28), reference=digits.training.reference)
    test = digits.test_images.repeat(3, axis=1)
    return replace(digits, training=training, labels=digits.labels[:100], test_images=test), paths


def test_corrupt_images_are_skipped(streamed: tuple[Dataset, list[Path]], tmp_path: Path) -> None:
    data, paths = streamed
    whole = evaluated(data, tmp_path, lambda: encoder(3), network=encoder(3))
    for index in (7, 8):
        paths[index].write_bytes(paths[index].read_bytes()[:50])
    found = evaluated(data, tmp_path, lambda: encoder(3), network=encoder(3))
    assert list(found.unavailable) == ["images"]
    assert "2 of 100 training images were skipped" in found.unavailable["images"]
    assert str(paths[7]) in found.unavailable["images"]
    for name, share in found.accuracies.items():  # the others have kept their own labels
        if "knn200" not in name:  # all 100 images are neighbours
            assert share == pytest.approx(whole.accuracies[name], abs=0.06)
    for path in paths:
        path.unlink()
    assert "none of 100 training images can be decoded" in evaluated(data, tmp_path).unavailable["probe_accuracy"]
