"""The images of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainables.batches import EpochOrder, ImageFiles


@dataclass(frozen=True)
class TrainingData:
    """Images to train on (in memory or on disk), and held-out ones for the reference loss: uint8 [n, C, H, W], square.

    Args:
        images: To train on.
        reference: Held out.
        epoch_order: Each epoch's order, such as ``partial(stratified_order, strata, seed)``; None: shuffled.
        strata: Each image's cluster, whole numbers [n]; for the score ``histogram`` and for weights by ``strata``.
        features: What a pretrained network sees in each image, float [n, d], d small; for other scores.
        centrality: Percentile of each image's distance to its cluster's centre [n]; for static weights.

    Raises:
        ValueError: What is known of the images is not of so many images, or no such numbers.
    """

    images: NDArray[np.uint8] | ImageFiles
    reference: NDArray[np.uint8]
    epoch_order: EpochOrder | None = None
    strata: NDArray[np.int64] | None = None
    features: NDArray[np.float32] | None = None
    centrality: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name in ("strata", "features", "centrality"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.images):
                raise ValueError(f"{name} of {len(values):,} images do not fit {len(self.images):,}: of other images?")
        if self.features is not None and not np.isfinite(self.features).all():
            raise ValueError("features must be finite, and some are NaN or infinite; fix or leave out these images")
        q = self.centrality
        if q is not None and len(q) and not (np.min(q) >= 0 and np.max(q) <= 1):
            raise ValueError(f"centrality from {np.min(q):g} to {np.max(q):g} must be percentiles within 0 to 1")
