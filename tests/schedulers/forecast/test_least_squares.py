from __future__ import annotations

import numpy as np
import pytest

from schedulers.forecast.least_squares import levenberg_marquardt


def test_solves_linear_problem() -> None:
    rng = np.random.default_rng(0)
    matrix, target = rng.standard_normal((30, 3)), rng.standard_normal(30)
    weight, prior, precision = rng.uniform(0.5, 2, 30), rng.standard_normal(3), np.diag([0.1, 1.0, 10.0])
    found = levenberg_marquardt(
        lambda theta: (matrix @ theta - target, matrix), np.zeros(3), weight, prior, precision, 50, 1e-12
    )
    weighted = matrix.T * weight
    expected = np.linalg.solve(weighted @ matrix + precision, weighted @ target + precision @ prior)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fits_exponential() -> None:
    t, truth = np.linspace(0, 3, 40), np.array([2.0, -1.3])

    def linearise(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        curve = theta[0] * np.exp(theta[1] * t)
        return curve - truth[0] * np.exp(truth[1] * t), np.stack([curve / theta[0], t * curve], axis=1)

    flat = 1e-9 * np.eye(2)
    found = levenberg_marquardt(linearise, np.array([1.0, -0.1]), np.ones(40), np.zeros(2), flat, 50, 1e-12)
    np.testing.assert_allclose(found, truth, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_cost_never_increases(steps: int) -> None:
    def linearise(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # Rosenbrock's valley
        x, y = theta
        return np.array([10 * (y - x * x), 1 - x]), np.array([[-20 * x, 10.0], [-1.0, 0.0]])

    start = np.array([-1.2, 1.0])
    found = levenberg_marquardt(linearise, start, np.ones(2), np.zeros(2), 1e-9 * np.eye(2), steps, 1e-12)
    assert np.sum(linearise(found)[0] ** 2) <= np.sum(linearise(start)[0] ** 2)
