"""What follows from a data set's clusters for a run on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_ray.clusters.counting import SAMPLE, Clustering
from adaptive_ray.clusters.vectors import Points, Projection, chunks
from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.errors import UserError
from schedulers import Candidate
from trainables.batches import CLUSTER_ORDERS, AdaptiveAccumulation, SampleStream, batch_score
from trainables.batches.sampling import repeats
from trainables.batches.scores import OF_FEATURES

#: Principal components of the features that batches are compared in.
_DIMENSIONS = 16
#: Images of a cluster in a batch, from which on one may be nearer to the centre than another.
_TELLING = 3


def reduced_features(folder: Path, seed: int) -> Points:
    """What the encoder sees in each image, in its 16 first principal components: float32 [n, 16].

    Args:
        folder: Holds the complete features.
        seed: Of the sample that the components are taken from.
    """
    features = np.load(folder / "features.npy", mmap_mode="r")
    some = np.sort(np.random.default_rng(seed).permutation(len(features))[:SAMPLE])
    projection = Projection.of(features[some].astype(np.float32), _DIMENSIONS, seed)
    return np.concatenate([projection(features[rows]) for rows in chunks(len(features))])


def images_per_update(
    config: ExperimentConfig, found: Clustering, features: Callable[[], Points | None]
) -> dict[Candidate, int] | None:
    """Images of each candidate's update, measured in an epoch's order; None where no information is asked for, or it
    is to be compared in features that are not there yet.

    Args:
        config: With batch sizes that are known.
        found: Clusters of the training images.
        features: Gives ``reduced_features``, should they be needed.

    Raises:
        UserError: Accumulating never reaches alpha.
    """
    informed, n = config.accumulation, len(found.labels)
    if informed is None:
        return None
    order = CLUSTER_ORDERS.get(config.sampling)
    stream = SampleStream(n, config.seed, order and partial(order, found.labels, config.seed))
    needed = features() if informed.score in OF_FEATURES else None
    if needed is None and informed.score in OF_FEATURES:
        return None
    score = batch_score(informed.score, found.labels, needed, config.seed)
    updates = AdaptiveAccumulation(informed, stream, score, config.budget.of(n))
    try:
        return {candidate: round(updates.mean_images(candidate.batch_size)) for candidate in config.choices}
    except ValueError as error:
        raise UserError(f"accumulation: {error}") from None


def remarks(config: ExperimentConfig, sizes: Sequence[int] | Any) -> list[str]:
    """What a user may not expect, a line each.

    Args:
        config: Of a run.
        sizes: Of the clusters [M].
    """
    told, m, weights = [], len(sizes), config.sample_weights
    if config.sampling == "balanced" and (most := repeats(sizes).max()) > 1:
        told.append(f"balanced batches repeat images of small clusters, up to {most:.1f} times an epoch")
    if m == 1 and config.accumulation is not None and config.accumulation.score == "histogram":
        told.append("there is one cluster only: every micro-batch scores 1, and all updates have equally many")
    smallest = min(candidate.batch_size for candidate in config.with_clusters(m).choices)
    if weights.mode == "batch" and weights.centres == "strata" and smallest < _TELLING * m:
        told.append(
            f"batches of {smallest} hold fewer than {_TELLING} images of most of {m} clusters: weights can hardly tell "
            f"centre from edge; use larger batches, or sample_weights.centres = kmeans"
        )
    return told
