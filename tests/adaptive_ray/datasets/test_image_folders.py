from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from adaptive_ray.datasets.image_folders import ImageFolder, Part, read_folder
from adaptive_ray.datasets.image_listing import Skipped
from adaptive_ray.errors import UserError
from tests.adaptive_ray.datasets.folders import images


def read(root: Path, *, labelled: bool = True) -> tuple[ImageFolder, list[str]]:
    """The images of a directory and the lines about skipped files."""
    skipped = Skipped()
    return read_folder(root, skipped, labelled=labelled), sorted(skipped.lines())


def places(part: Part | None, root: Path) -> list[str]:
    assert part is not None
    return [Path(path).relative_to(root).as_posix() for path in part.paths]


def complaint(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(root)
    text = str(caught.value)
    assert text.startswith(f"dataset.root = {root}: ")
    assert "\n" not in text
    return text


def test_one_class_per_folder_in_torchvisions_order(tmp_path: Path) -> None:
    for name in ("b", "B", "a/deep/er", "a/deep-er", "a", "c 1/x"):
        images(tmp_path / name, 2)
    folder, skipped = read(tmp_path)
    expected = TorchvisionFolder(str(tmp_path))
    assert folder.training.paths == [path for path, _ in expected.samples]
    assert folder.training.classes == [expected.classes[label] for label in expected.targets]
    assert folder.test is None
    assert folder.notes == skipped == []


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    folder, skipped = read(images(tmp_path))
    assert places(folder.training, tmp_path) == ["000.png", "001.png", "002.png"]
    assert folder.training.classes is None
    assert folder.notes == ["unlabelled: no class directories"]
    assert skipped == []


def test_labels_none_takes_everything(tmp_path: Path) -> None:
    for name in ("", "a", "b/c"):
        images(tmp_path / name, 1)
    folder, skipped = read(tmp_path, labelled=False)
    assert places(folder.training, tmp_path) == ["000.png", "a/000.png", "b/c/000.png"]
    assert folder.training.classes is None
    assert folder.notes == ["unlabelled: dataset.labels = none"]
    assert skipped == []


def test_a_single_folder_of_images_is_not_a_class(tmp_path: Path) -> None:
    images(tmp_path / "archive" / "a")
    images(tmp_path / "archive" / "b")
    folder, _ = read(tmp_path)
    assert len(folder.training.paths) == 6
    assert folder.training.classes is None
    assert folder.notes == [
        "unlabelled: all images are in one directory, archive/; if it contains classes, add it to dataset.root"
    ]
    assert read(tmp_path / "archive")[0].training.classes == ["a", "a", "a", "b", "b", "b"]


def test_images_beside_folders_of_classes(tmp_path: Path) -> None:
    images(tmp_path / "a", 2)
    images(tmp_path / "b", 2)
    images(tmp_path, 4)
    folder, skipped = read(tmp_path)
    assert folder.training.classes == ["a", "a", "b", "b"]
    assert skipped == ["images outside class directories: 4 (000.png, ...)"]
    images(tmp_path, 5)  # most: the folders are no classes, and nothing is left out
    folder, skipped = read(tmp_path)
    assert len(folder.training.paths) == 9
    assert folder.training.classes is None
    assert folder.notes == ["unlabelled: 5 images are outside class directories, and 4 inside"]
    assert skipped == []


def test_empty_classes_are_listed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        images(tmp_path / name, 1)
    (tmp_path / "c").mkdir()
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "notes.txt").touch()
    folder, skipped = read(tmp_path)
    assert folder.training.classes == ["a", "b"]
    assert "directories without images: 2 (c, d)" in skipped


@pytest.mark.parametrize(
    ("names", "test"),
    [
        (("train", "val"), "val"),
        (("Training", "VALIDATION"), "VALIDATION"),
        (("train", "test"), "test"),
        (("train", "test", "valid"), "valid"),
    ],
)
def test_train_and_val(tmp_path: Path, names: tuple[str, ...], test: str) -> None:
    for name in names:
        for kind in ("cats", "dogs"):
            images(tmp_path / name / kind, 2)
    (tmp_path / "annotations").mkdir()
    folder, skipped = read(tmp_path)
    assert places(folder.training, tmp_path / names[0]) == [
        f"{kind}/00{i}.png" for kind in ("cats", "dogs") for i in (0, 1)
    ]
    assert places(folder.test, tmp_path / test) == places(folder.training, tmp_path / names[0])
    assert folder.test is not None
    assert folder.test.classes == folder.training.classes == ["cats", "cats", "dogs", "dogs"]
    assert folder.notes == [f"test images: {test}/"]
    left_out = ["images outside train/ and valid/: 4 (test/cats/000.png, test/dogs/000.png, ...)"]
    assert skipped == (left_out if len(names) == 3 else [])


def test_val_has_the_classes_of_train(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "train/c", "val/a", "val/b", "val/z"):
        images(tmp_path / name, 1)
    images(tmp_path / "val", 1)
    folder, skipped = read(tmp_path)
    assert folder.training.classes == ["a", "b", "c"]
    assert folder.test is not None
    assert folder.test.classes == ["a", "b"]
    assert skipped == ["images in val/ whose class has no training images: 2 (000.png, z/000.png)"]


def test_val_without_classes_is_skipped_if_images_are_labelled(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val"):
        images(tmp_path / name, 1)
    folder, skipped = read(tmp_path)
    assert folder.training.classes == ["a", "b"]
    assert folder.test is None
    assert folder.notes == ["test images are sampled from the training images"]
    assert skipped == ["images in val/, which has no class of the training images: 1 (val/)"]


@pytest.mark.parametrize("labelled", [True, False])
def test_train_and_val_without_labels(tmp_path: Path, labelled: bool) -> None:
    inside = "" if labelled else "/a"
    images(tmp_path / f"train{inside}", 3)
    images(tmp_path / f"val{inside}", 2)
    folder, _ = read(tmp_path, labelled=labelled)
    assert len(folder.training.paths) == 3
    assert folder.test is not None
    assert len(folder.test.paths) == 2
    assert folder.training.classes is folder.test.classes is None


def test_train_without_val(tmp_path: Path) -> None:
    for name in ("train/a", "train/b"):
        images(tmp_path / name, 1)
    folder, _ = read(tmp_path)
    assert folder.training.classes == ["a", "b"]
    assert folder.test is None


def test_a_train_folder_beside_other_classes_is_a_class(tmp_path: Path) -> None:
    for name in ("train", "bus"):
        images(tmp_path / name, 1)
    assert read(tmp_path)[0].training.classes == ["bus", "train"]


@pytest.mark.parametrize(
    ("names", "rule"), [(("val", "test"), "but no train/"), (("train", "training", "val"), "keep only one")]
)
def test_ambiguous_training_folders_are_refused(tmp_path: Path, names: tuple[str, ...], rule: str) -> None:
    for name in names:
        images(tmp_path / name / "a", 1)
        images(tmp_path / name / "b", 1)
    assert rule in complaint(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    assert "no such directory" in complaint(tmp_path / "nowhere")
    assert "the directory is empty" in complaint(tmp_path)
    (tmp_path / "scan.dcm").touch()
    (tmp_path / ".hidden").mkdir()
    text = complaint(tmp_path)
    assert "no images" in text
    assert "other file types: 1 (scan.dcm)" in text
    archive = tmp_path / "data.zip"
    archive.touch()
    assert "is a file; extract it" in complaint(archive)


def test_links_from_val_to_train_are_not_test_images(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        images(tmp_path / name, 1)
    (tmp_path / "val" / "a" / "known.png").symlink_to(tmp_path / "train" / "a" / "000.png")
    folder, skipped = read(tmp_path)
    assert places(folder.test, tmp_path) == ["val/a/000.png", "val/b/000.png"]
    assert skipped == ["files linked twice: 1 (val/a/known.png)"]


def test_root_may_be_a_link(tmp_path: Path) -> None:
    images(tmp_path / "data" / "a", 1)
    images(tmp_path / "data" / "b", 1)
    (tmp_path / "link").symlink_to("data")
    folder, skipped = read(tmp_path / "link")
    assert places(folder.training, tmp_path / "link") == ["a/000.png", "b/000.png"]
    assert skipped == []
    with Image.open(folder.training.paths[0]) as image:
        assert image.size == (9, 9)
