"""The online kNN accuracy: how well the EMA weights separate the classes, measured during training."""

from __future__ import annotations

import torch

from trainables.data import LabelledImages
from trainables.evaluation.knn import knn_accuracies
from trainables.simclr.encoder import Encoder


class OnlineKnn:
    """Measures an encoder at the first report after each interval, and at the end of the run.

    Which reports these are depends on the samples seen only, and no random number is drawn, so that training and a
    resumed run are not affected. The interval ``every`` and the ``budget`` of the run are in samples.
    """

    def __init__(self, images: LabelledImages, *, every: int, budget: int, device: torch.device) -> None:
        self._images, self._every, self._budget, self._device = images, every, budget, device
        self._labels = [torch.tensor(labels, device=device) for labels in (images.bank_labels, images.labels)]

    def is_due(self, before: int, samples: int) -> bool:
        """Whether a report after ``samples`` is measured, if the one before it came after ``before`` samples."""
        return samples // self._every > before // self._every or samples >= self._budget

    def measure(self, encoder: Encoder) -> float:
        """Returns the accuracy, in 0 to 1, of 20 nearest neighbours (see ``knn_accuracies``)."""
        bank, queries = (
            torch.from_numpy(encoder.embed(images)).to(self._device)
            for images in (self._images.bank, self._images.images)
        )
        bank_labels, labels = self._labels
        return knn_accuracies(bank, bank_labels, queries, labels, protocols=("knn",))["knn"].top1
