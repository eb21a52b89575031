"""Top-1 and top-5 accuracy of class scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Up to this number of classes, top-5 accuracy says little.
_FEW_CLASSES = 10


@dataclass(frozen=True)
class Accuracy:
    """Fractions of correctly classified images, in 0 to 1; ``top5`` is None with 10 classes or fewer."""

    top1: float
    top5: float | None = None


def numbered(train_labels: Tensor, test_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the classes of the training images, sorted, and each training image's index among them.

    Raises:
        ValueError: All training images are of one class, or there are no test images.
    """
    if len(test_labels) == 0:
        raise ValueError("there are no held-out images to test a classifier on")
    classes, indices = train_labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"all {len(train_labels):,} training images of a classifier are of one class")
    return classes, indices


def accuracy(scores: Tensor, classes: Tensor, labels: Tensor) -> Accuracy:
    """Compares scores [m, k] of ``classes`` [k] with labels [m], which may include other classes."""
    few = len(classes) <= _FEW_CLASSES
    hits = classes[scores.topk(1 if few else 5).indices] == labels.unsqueeze(1)
    first, any_of_five = torch.stack([hits[:, 0].sum(), hits.any(1).sum()]).tolist()
    top1 = first / len(labels)
    return Accuracy(top1) if few else Accuracy(top1, any_of_five / len(labels))
