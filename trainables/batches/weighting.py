"""Sample weights (method 5): images at the centre of their cluster have more weight early in a run, others late."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainables.settings import Schedule

#: Iterations of k-means in a batch.
_ROUNDS = 3

Values = TypeVar("Values", NDArray[np.floating], Tensor)


def sample_weights(percentile: Values, progress: float, strength: float, schedule: Schedule = "linear") -> Values:
    """Returns weights of mean 1: w = 1 + strength * tilt(progress) * (1 - 2 q), divided by the mean.

    Args:
        percentile: q, the percentile of each image's distance to its cluster's centre [b]: 0 at the centre, 1 at the
            edge. Values on a GPU are not checked, which would synchronise.
        progress: p, the fraction of the run's budget that has been used, 0 to 1.
        strength: 0 (equal weights) to 1 (weights from 0 to 2).
        schedule: tilt, from 1 at the start to -1 at the end: ``linear`` 1 - 2 p, ``cosine`` cos(pi p), or ``step``.

    Raises:
        ValueError: ``progress``, ``strength`` or a percentile is not within 0 to 1.
    """
    percentile = percentile if isinstance(percentile, Tensor) else np.asarray(percentile)
    seen = percentile.device.type == "cpu" if isinstance(percentile, Tensor) else True
    if seen and len(percentile) and not (percentile.min() >= 0 and percentile.max() <= 1):
        raise ValueError(f"percentiles from {percentile.min():g} to {percentile.max():g} must be within 0 to 1")
    weights = relative_weights(percentile, progress, strength, schedule)
    mean = weights.mean()
    if isinstance(weights, Tensor):
        return torch.where(mean > 0, weights / mean, 1.0)
    return weights / mean if mean > 0 else np.ones_like(weights)


def relative_weights(percentile: Values, progress: float, strength: float, schedule: Schedule = "linear") -> Values:
    """Returns ``sample_weights`` without the division by the mean, which a shard does not know."""
    if not 0 <= progress <= 1:
        raise ValueError(f"progress {progress} must be within 0 to 1")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength} must be within 0 to 1, because weights must not be negative")
    tilt = {
        "linear": 1 - 2 * progress,
        "cosine": math.cos(math.pi * progress),
        "step": float(np.sign(0.5 - progress)),
    }[schedule]
    return 1 + strength * tilt * (1 - 2 * percentile)


def percentiles(embeddings: Tensor, strata: Tensor | None, clusters: int) -> Tensor:
    """Returns the percentile of each image's distance to the centre of its cluster in the batch.

    Runs on the embeddings' device without synchronisation. Memory is linear in the batch size.

    Args:
        embeddings: Embeddings of length 1 [b, d].
        strata: Clusters of the images, from 0 [b]; None: clusters of k-means, initialised with the first images.
        clusters: Number of clusters.

    Returns:
        Ranks by distance within the cluster, from 0 at the centre to 1 at the edge [b]; 0.5 in clusters of one or two
        images, whose distances are equal.
    """
    if strata is None:
        centres = embeddings[:clusters]
        for _ in range(_ROUNDS):
            strata = (embeddings @ centres.T).argmax(dim=1)
            centres = _centres(embeddings, strata, centres)
        strata = (embeddings @ centres.T).argmax(dim=1)
    else:
        centres = _centres(embeddings, strata, embeddings.new_zeros(clusters, embeddings.shape[1]))
    nearness = (embeddings * centres[strata]).sum(dim=1)
    order = torch.argsort(nearness, descending=True, stable=True)
    order = order[torch.argsort(strata[order], stable=True)]
    counts = _counts(strata, len(centres))
    first = counts.cumsum(0) - counts
    sorted_strata = strata[order]
    place = torch.arange(len(order), device=order.device) - first[sorted_strata]
    others = counts[sorted_strata] - 1
    ranks = torch.where(others > 1, place / others.clamp(min=1), 0.5).to(embeddings.dtype)
    return torch.empty_like(ranks).scatter_(0, order, ranks)


def _centres(embeddings: Tensor, strata: Tensor, otherwise: Tensor) -> Tensor:
    """Returns the clusters' means, scaled to length 1 [k, d], or ``otherwise`` for empty clusters."""
    member = (strata[:, None] == torch.arange(len(otherwise), device=strata.device)).to(embeddings.dtype)
    means = F.normalize(member.T @ embeddings, dim=1)
    return torch.where(member.any(dim=0)[:, None], means, otherwise)


def _counts(strata: Tensor, clusters: int) -> Tensor:
    """Returns the number of images of each cluster. ``torch.bincount`` would synchronise with the device."""
    ones = torch.ones_like(strata)
    return torch.zeros(clusters, dtype=strata.dtype, device=strata.device).scatter_add_(0, strata, ones)
