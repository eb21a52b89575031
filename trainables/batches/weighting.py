"""Method 5: images at the centre of their cluster count more early in a run, images at its edge late."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainables.settings import Schedule

#: Rounds of k-means in a batch.
_ROUNDS = 3

Values = TypeVar("Values", NDArray[np.floating], Tensor)


def sample_weights(percentile: Values, progress: float, strength: float, schedule: Schedule = "linear") -> Values:
    """Weights of a batch's images, of mean 1: w = 1 + strength * tilt(progress) * (1 - 2 q), then divided by the mean.

    Args:
        percentile: q of each image's distance to its cluster's centre [b]: 0 is the centre, 1 the edge. On a device
            nothing is read from it.
        progress: p, the share of the run that is done, 0 to 1.
        strength: 0 (all alike) to 1 (weights of 0 to 2).
        schedule: tilt, from 1 through 0 at mid-run to -1: ``linear`` 1 - 2 p, ``cosine`` cos(pi p), or ``step``.

    Raises:
        ValueError: ``progress`` or, where the host can see it, a percentile is not within 0 to 1; ``strength`` is
            negative, or above 1, where weights would be.
    """
    percentile = percentile if isinstance(percentile, Tensor) else np.asarray(percentile)
    seen = percentile.device.type == "cpu" if isinstance(percentile, Tensor) else True
    if seen and len(percentile) and not (percentile.min() >= 0 and percentile.max() <= 1):
        raise ValueError(f"percentiles from {percentile.min():g} to {percentile.max():g} must be within 0 to 1")
    weights = relative_weights(percentile, progress, strength, schedule)
    mean = weights.mean()
    if isinstance(weights, Tensor):
        return torch.where(mean > 0, weights / mean, 1.0)  # all at 0: none is to be preferred
    return weights / mean if mean > 0 else np.ones_like(weights)


def relative_weights(percentile: Values, progress: float, strength: float, schedule: Schedule = "linear") -> Values:
    """``sample_weights`` before they are divided by their mean: for a part of a batch, which does not know it."""
    if not 0 <= progress <= 1:
        raise ValueError(f"progress {progress} must be within 0 to 1")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength} must be within 0 to 1: beyond, some weights would be negative")
    tilt = {
        "linear": 1 - 2 * progress,
        "cosine": math.cos(math.pi * progress),
        "step": float(np.sign(0.5 - progress)),
    }[schedule]
    return 1 + strength * tilt * (1 - 2 * percentile)


def percentiles(embeddings: Tensor, strata: Tensor | None, clusters: int) -> Tensor:
    """Where each image stands between the centre (0) and the edge (1) of its cluster in the batch.

    All on the embeddings' device: nothing is read from it, and memory is linear in the batch.

    Args:
        embeddings: Of length 1 [b, d].
        strata: The images' clusters, from 0 on [b]; None: k-means, which begins at the batch's first images.
        clusters: Their number.

    Returns:
        Ranks by distance within the cluster, from 0 to 1 [b]; 0.5 in a cluster of one image, or of two, which are
        equally far from their centre.
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
    """Means of the clusters, of length 1 [k, d]; ``otherwise`` where one is empty."""
    member = (strata[:, None] == torch.arange(len(otherwise), device=strata.device)).to(embeddings.dtype)
    means = F.normalize(member.T @ embeddings, dim=1)
    return torch.where(member.any(dim=0)[:, None], means, otherwise)


def _counts(strata: Tensor, clusters: int) -> Tensor:
    """Images of each cluster. (``torch.bincount`` would wait for the device.)"""
    ones = torch.ones_like(strata)
    return torch.zeros(clusters, dtype=strata.dtype, device=strata.device).scatter_add_(0, strata, ones)
