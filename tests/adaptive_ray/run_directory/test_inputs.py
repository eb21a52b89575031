"""A run resumes only with unchanged settings and data."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from adaptive_ray.config.loading import load_config
from adaptive_ray.datasets.dataset import Dataset, load_dataset
from adaptive_ray.errors import UserError
from adaptive_ray.experiment.experiment import Experiment
from adaptive_ray.run_directory.directory import RunDirectory
from adaptive_ray.run_directory.inputs import INPUTS_FILE, check_inputs, check_settings, open_run
from adaptive_ray.run_directory.lock import locked
from trainables.batches import ImageFiles
from trainables.data import TrainingData

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


def digits(**changed: Any) -> Dataset:
    draw = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "images": draw.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8),
        "reference": draw.integers(0, 256, (16, 1, 8, 8), dtype=np.uint8),
        "labels": draw.integers(0, 10, 60),
        "test_images": draw.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8),
        "test_labels": draw.integers(0, 10, 20),
    } | changed
    training = TrainingData(images=parts.pop("images"), reference=parts.pop("reference"))
    return Dataset(name="mnist5k", training=training, **parts)


def edit(directory: RunDirectory, **settings: Any) -> None:
    """Changes ``a.b`` in config.yaml."""
    file = directory.path / "config.yaml"
    config = yaml.safe_load(file.read_text())
    for name, value in settings.items():
        *parents, last = name.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    file.write_text(yaml.safe_dump(config))


def check(directory: RunDirectory, data: Dataset) -> None:
    check_inputs(directory, directory.config(), data)
    (directory.path / "events.jsonl").touch()  # the run has started


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """The directory of a run that was started."""
    started = RunDirectory.create(load_config(QUICKSTART, [f"runs_dir={tmp_path / 'runs'}"]), "first")
    check(started, digits())
    return started


class TestSettings:
    def test_the_same(self, directory: RunDirectory) -> None:
        check_settings(directory, directory.config())

    def test_changed_settings_are_listed_with_both_values(self, directory: RunDirectory) -> None:
        edit(directory, simclr__temperature=0.7, candidates=[64, 128], budget={"samples": 9000, "epochs": None})
        with pytest.raises(UserError) as caught:
            open_run(directory.path)
        message = str(caught.value)
        assert message.startswith(f"the settings of {directory.path} changed since it started: ")
        assert "simclr.temperature = 0.7 (was 0.2)" in message
        assert "candidates = [64, 128] (was [" in message
        assert "budget.samples = 9000 (was null)" in message
        assert "--name" in message
        assert "\n" not in message

    def test_locations_may_change(self, directory: RunDirectory, tmp_path: Path) -> None:
        elsewhere = str(tmp_path / "elsewhere")
        edit(directory, dataset__root=elsewhere, runs_dir=elsewhere, name="other", tracking__enabled=False)
        edit(directory, dataset__decoder_threads=3, dataset__download=False, tracking__uri="sqlite:///x.db")
        assert open_run(directory.path)[1].dataset.root == Path(elsewhere)

    def test_equivalent_yaml_is_accepted(self, directory: RunDirectory) -> None:
        file = directory.path / "config.yaml"
        config = yaml.safe_load(file.read_text())
        del config["race"]["forecaster"]  # the default
        file.write_text("# a remark\n" + yaml.safe_dump(config))
        check_settings(directory, directory.config())

    def test_a_run_that_has_not_started_takes_new_settings_and_data(self, directory: RunDirectory) -> None:
        (directory.path / "events.jsonl").unlink()
        derived = [directory.path / name for name in ("mlflow.json", "layout.json", "clusters.html")]
        for file in derived:
            file.write_text("{}")
        check_inputs(directory, directory.config().model_copy(update={"name": "first"}), digits())
        assert all(file.exists() for file in derived)
        assert directory.config().name == "first"
        config = directory.config().model_copy(update={"seed": 7})
        check_inputs(directory, config, digits(labels=None, test_labels=None))
        assert not any(file.exists() for file in derived)
        check(directory, digits(labels=None, test_labels=None))
        assert directory.config() == config
        assert open_run(directory.path)[1].seed == 7

    def test_without_a_record_the_settings_in_the_directory_count(self, directory: RunDirectory) -> None:
        (directory.path / INPUTS_FILE).unlink()
        with pytest.raises(UserError, match=r"seed = 7 \(was 0\)"):
            check_settings(directory, directory.config().model_copy(update={"seed": 7}))
        check_settings(directory, directory.config())

    def test_settings_that_may_change_are_written_when_it_resumes(self, directory: RunDirectory) -> None:
        config = directory.config()
        evaluation = config.evaluation.model_copy(update={"images": 99})
        check_inputs(directory, config.model_copy(update={"evaluation": evaluation}), digits())
        assert directory.config().evaluation.images == 99


class TestImages:
    def test_the_same(self, directory: RunDirectory) -> None:
        before = (directory.path / INPUTS_FILE).read_bytes()
        check(directory, digits())
        assert (directory.path / INPUTS_FILE).read_bytes() == before

    @pytest.mark.parametrize(
        ("part", "name"),
        [("images", "training images"), ("reference", "reference images"), ("test_images", "test images")],
    )
    def test_the_part_that_differs_is_listed(self, directory: RunDirectory, part: str, name: str) -> None:
        whole = digits()
        images = {"test_images": whole.test_images, "images": whole.training.images}.get(part, whole.training.reference)
        with pytest.raises(UserError, match=rf"{len(images) - 1} {name} \(was {len(images)}\)") as caught:
            check(directory, digits(**{part: images[:-1], **_labels(part, whole)}))
        assert "--name" in str(caught.value)
        assert "\n" not in str(caught.value)
        changed = np.array(images)
        changed[-1, -1, -1, -1] ^= 1
        with pytest.raises(UserError, match=rf"{name} differ \(digest of pixels and labels") as caught:
            check(directory, digits(**{part: changed}))
        others = {"training images", "reference images", "test images"} - {name}
        assert not any(other in str(caught.value) for other in others)
        with pytest.raises(UserError, match=f"{name} differ"):
            check(directory, digits(**{part: np.array(images)[::-1]}))  # another order is another split

    def test_changed_labels(self, directory: RunDirectory) -> None:
        for part, name in (("labels", "training images"), ("test_labels", "test images")):
            labels = getattr(digits(), part)
            with pytest.raises(UserError, match=f"{name} differ"):
                check(directory, digits(**{part: (labels + 1) % 10}))

    def test_without_labels(self, directory: RunDirectory) -> None:
        (directory.path / INPUTS_FILE).unlink()
        for _ in range(2):
            check(directory, dataclasses.replace(digits(), labels=None, test_labels=None))


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        draw = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (tmp_path / "images" / name).mkdir(parents=True)
            for number in range(40):
                pixels = draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
        return tmp_path / "images"

    def start(self, folder: Path, stream: bool) -> tuple[RunDirectory, Dataset]:
        settings = ["dataset.name=image_folder", f"dataset.root={folder}", f"dataset.stream={stream}"]
        settings += ["dataset.image_size=8", "dataset.reference_images=16", f"runs_dir={folder.parent / 'runs'}"]
        config = load_config(QUICKSTART, settings)
        return RunDirectory.create(config, f"run-{stream}"), load_dataset(config.dataset, config.seed)

    def test_a_copy_of_a_streamed_folder_is_accepted_and_a_changed_file_is_not(self, folder: Path) -> None:
        directory, data = self.start(folder, stream=True)
        check(directory, data)
        assert isinstance(data.training.images, ImageFiles)
        copy = folder.parent / "copy"
        shutil.copytree(folder, copy)
        settings = directory.config().dataset.model_copy(update={"root": copy})
        edit(directory, dataset__root=str(copy))
        check(directory, load_dataset(settings, 0))
        (changed,) = data.training.images.subset(np.array([0])).listing(folder)
        with (copy / changed.split(b"'")[1].decode()).open("ab") as file:
            file.write(b"\0")
        with pytest.raises(UserError, match=r"training images differ \(digest of names and sizes of files"):
            check(directory, load_dataset(settings, 0))

    def test_streaming_a_folder_that_was_in_memory_is_accepted(self, folder: Path) -> None:
        directory, data = self.start(folder, stream=False)
        check(directory, data)
        _, streamed = self.start(folder, stream=True)
        check(directory, streamed)


def test_a_locked_or_finished_run_is_not_modified(directory: RunDirectory) -> None:
    """Including one that finished while this process loaded its data."""
    experiment = Experiment(directory.config())
    (directory.path / INPUTS_FILE).unlink()
    with locked(directory.path):
        before = {file.name: file.read_bytes() for file in directory.path.iterdir()}
        with pytest.raises(UserError, match="is in use by process"):
            experiment.run(directory, Console(file=io.StringIO()))
    directory.write_json("result.json", {})
    with pytest.raises(UserError, match="already finished"):
        experiment.run(directory, Console(file=io.StringIO()))
    (directory.path / "result.json").unlink()
    assert {file.name: file.read_bytes() for file in directory.path.iterdir()} == before


def _labels(part: str, whole: Dataset) -> dict[str, Any]:
    """The labels without the last one, for the part that lost an image."""
    if part == "images":
        assert whole.labels is not None
        return {"labels": whole.labels[:-1]}
    if part == "test_images":
        assert whole.test_labels is not None
        return {"test_labels": whole.test_labels[:-1]}
    return {}
