"""Synthetic features with known clusters."""

from __future__ import annotations

import numpy as np


def mixture(
    m: int, n: int = 900, dimensions: int = 64, separation: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns Gaussians of variance 1 around means of variance ``separation`` squared [n, d], and labels [n]."""
    generator = np.random.default_rng((m, seed))
    means = separation * generator.normal(size=(m, dimensions))
    labels = generator.choice(m, n, p=generator.dirichlet(np.full(m, 8.0)))
    return (means[labels] + generator.normal(size=(n, dimensions))).astype(np.float32), labels
