"""Synthetic loss curves with known efficiencies."""

from __future__ import annotations

import numpy as np

from schedulers.forecast.schedule_clock import annealed


def shared_curve(progress: np.ndarray) -> np.ndarray:
    """Returns the shared curve at ``progress`` samples."""
    return 2.0 + 1.5 * (progress / 10_000 + 0.1) ** -0.5


def loss_curve(rate: float, until: float, points: int = 20, noise: float = 0.0, seed: int = 0, end: float = np.inf):  # type: ignore[no-untyped-def]
    """Returns samples and losses of a candidate of efficiency ``rate`` whose learning rate decays until ``end``."""
    samples = np.linspace(until / points, until, points)
    return samples, shared_curve(rate * annealed(samples, end)) + noise * np.random.default_rng(seed).standard_normal(
        points
    )
