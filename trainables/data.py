"""The images of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainables.batches import EpochOrder, ImageFiles


@dataclass(frozen=True)
class LabelledImages:
    """Images and labels for the online kNN accuracy; training does not see the labels."""

    bank: NDArray[np.uint8]  # some training images [k, C, H, W]
    bank_labels: NDArray[np.int64]  # their labels [k], of at least two classes
    images: NDArray[np.uint8]  # held-out images [m, C, H, W]
    labels: NDArray[np.int64]  # their labels [m]


@dataclass(frozen=True)
class TrainingData:
    """Training images and held-out images for the reference loss, uint8 [n, C, H, W], square.

    Args:
        images: Training images, in memory or on disk.
        reference: Held-out images.
        epoch_order: Order of each epoch, such as ``partial(stratified_order, strata, seed)``; None: shuffled.
        strata: Cluster of each image, integers [n]; for the score ``histogram`` and for weights by ``strata``.
        features: Features of each image from a pretrained network, float [n, d] with small d; for other scores.
        centrality: Percentile of each image's distance to its cluster's centre [n]; for static weights.
        labelled: For the online kNN accuracy; None: it is not reported.

    Raises:
        ValueError: Strata, features or centrality have another length than ``images`` or invalid values.
    """

    images: NDArray[np.uint8] | ImageFiles
    reference: NDArray[np.uint8]
    epoch_order: EpochOrder | None = None
    strata: NDArray[np.int64] | None = None
    features: NDArray[np.float32] | None = None
    centrality: NDArray[np.float32] | None = None
    labelled: LabelledImages | None = None

    def __post_init__(self) -> None:
        for name in ("strata", "features", "centrality"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.images):
                raise ValueError(f"{name} has {len(values):,} entries, but there are {len(self.images):,} images")
        if self.features is not None and not np.isfinite(self.features).all():
            raise ValueError("features must be finite, but some are NaN or infinite; fix or remove these images")
        q = self.centrality
        if q is not None and len(q) and not (np.min(q) >= 0 and np.max(q) <= 1):
            raise ValueError(f"centrality from {np.min(q):g} to {np.max(q):g} must be within 0 to 1")
