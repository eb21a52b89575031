"""Deviations of single curves from the shared curve: a random walk in log progress, observed with noise.

Curves are not exactly one curve at different speeds: efficiencies drift, and different settings may end at different
losses. The current deviation of a curve persists in its forecast, and its variance grows with log progress.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schedulers.forecast.base import Array

#: Residuals count as at most this many times the usual one of their curve: outliers.
_CLIP = 3.0


@dataclass(frozen=True)
class Walk:
    """The current deviation of each curve, and the variance of its future steps."""

    level: Array  # [T]
    variance: Array  # [T], of the level
    step: float  # variance per unit of log progress


def fit_walk(residual: Array, log_progress: Array, track: NDArray[np.intp]) -> Walk:
    """Estimates noise and steps from increments over two distances, over all curves, and then the current levels.

    Args:
        residual: Loss minus the shared curve [n].
        log_progress: [n].
        track: Index of the curve of each residual [n], ascending from 0; oldest first.
    """
    count = np.bincount(track)
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    size = np.abs(residual)
    usual = size[np.lexsort((size, track))][first + count // 2]  # np.median would take longer than the rest
    limit = (_CLIP * 1.4826 * usual)[track]
    clipped = np.clip(residual, -limit, limit)

    (near, near_gap), (far, far_gap) = (
        _increments(clipped, log_progress, track, distance) for distance in (1, max(2, int(count.min()) // 3))
    )
    step = max(far - near, 0.0) / (far_gap - near_gap) if far_gap > near_gap else 0.0
    step = min(step, near / near_gap) if near_gap > 0 else 0.0
    noise = max((near - step * near_gap) / 2, 1e-12)

    # Exponential weights are those of the Kalman filter in its steady state.
    age = log_progress[first + count - 1][track] - log_progress
    weight = np.exp(-age * np.sqrt(step / (noise * max(near_gap, 1e-12))))
    total = np.add.reduceat(weight, first)
    level = np.add.reduceat(weight * clipped, first) / total
    variance = (
        noise * np.add.reduceat(weight**2, first) / total**2 + step * np.add.reduceat(weight * age, first) / total
    )
    return Walk(level, variance, float(step))


def _increments(residual: Array, log_progress: Array, track: NDArray[np.intp], distance: int) -> tuple[float, float]:
    """Returns mean square and mean log progress of increments over ``distance`` reports; squares are clipped."""
    same = track[distance:] == track[:-distance]
    if not same.any():
        return 0.0, 0.0
    square = (residual[distance:] - residual[:-distance])[same] ** 2
    usual = float(np.sort(square)[len(square) // 2]) / 0.455  # the median of a squared normal variable
    gap = (log_progress[distance:] - log_progress[:-distance])[same]
    return float(np.minimum(square, _CLIP**2 * usual).mean()), float(gap.mean())
