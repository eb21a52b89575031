"""Derives settings and warnings of a run from the clusters of its data set."""

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

#: Principal components of the features in which batches are compared.
_DIMENSIONS = 16
#: Images of a cluster in a batch, below which centre and edge cannot be distinguished.
_MIN_PER_CLUSTER = 3


def reduced_features(folder: Path, seed: int) -> Points:
    """Returns the first 16 principal components of the features, float32 [n, 16]."""
    features = np.load(folder / "features.npy", mmap_mode="r")
    some = np.sort(np.random.default_rng(seed).permutation(len(features))[:SAMPLE])
    projection = Projection.of(features[some].astype(np.float32), _DIMENSIONS, seed)
    return np.concatenate([projection(features[rows]) for rows in chunks(len(features))])


def images_per_update(
    config: ExperimentConfig, found: Clustering, features: Callable[[], Points | None]
) -> dict[Candidate, int] | None:
    """Measures the mean number of images per update of each candidate with adaptive accumulation.

    Returns None without adaptive accumulation, or if features are needed and missing. ``features`` returns
    ``reduced_features``; it is called if they are needed.

    Raises:
        UserError: Accumulation never reaches alpha.
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
    """Returns warnings about a run with clusters of these sizes, one line each."""
    lines, m, weights = [], len(sizes), config.sample_weights
    if config.sampling == "balanced" and (most := repeats(sizes).max()) > 1:
        lines.append(f"balanced batches repeat images of small clusters, up to {most:.1f} times per epoch")
    if m == 1 and config.accumulation is not None and config.accumulation.score == "histogram":
        lines.append("there is only one cluster: every micro-batch scores 1, so all updates have equally many")
    smallest = min(candidate.batch_size for candidate in config.with_clusters(m).choices)
    if weights.mode == "batch" and weights.centres == "strata" and smallest < _MIN_PER_CLUSTER * m:
        lines.append(
            f"batches of {smallest} have fewer than {_MIN_PER_CLUSTER} images of most clusters, too few to weight "
            "centre and edge; use larger batches, or sample_weights.centres = kmeans"
        )
    return lines
