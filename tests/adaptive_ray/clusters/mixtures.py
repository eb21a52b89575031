"""Made-up features of known clusters."""

from __future__ import annotations

import numpy as np


def mixture(
    m: int, n: int = 900, dimensions: int = 64, separation: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussians of variance 1 about means of variance ``separation`` squared: float32 [n, d] and their numbers [n]."""
    generator = np.random.default_rng((m, seed))
    means = separation * generator.normal(size=(m, dimensions))
    labels = generator.choice(m, n, p=generator.dirichlet(np.full(m, 8.0)))
    return (means[labels] + generator.normal(size=(n, dimensions))).astype(np.float32), labels
