"""Weighted least squares with a normal prior (Levenberg-Marquardt; Nocedal & Wright, Numerical Optimization, 10.3)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from schedulers.forecast.base import Array

#: theta [d] -> residuals [n] and their derivatives.
Linearise = Callable[[Array], tuple[Array, Array]]
#: Residuals, derivatives and weights [n] -> J' W J [d, d] and J' W r [d].
Normal = Callable[[Array, Array, Array], tuple[Array, Array]]


def normal_equations(residual: Array, jacobian: Array, weight: Array) -> tuple[Array, Array]:
    """Returns J' W J [d, d] and J' W r [d] of a dense Jacobian."""
    weighted = jacobian.T * weight
    return weighted @ jacobian, weighted @ residual


def levenberg_marquardt(
    linearise: Linearise,
    theta: Array,
    weight: Array,
    prior_mean: Array,
    precision: Array,
    steps: int,
    tolerance: float,
    normal: Normal = normal_equations,
) -> Array:
    """Minimises sum(weight * residual^2) + (theta - prior_mean)' precision (theta - prior_mean) over theta [d].

    Args:
        linearise: theta -> residuals [n] and their derivatives [n, d].
        theta: Initial parameters [d].
        weight: Weights of the residuals [n].
        prior_mean: Prior means of the parameters [d].
        precision: Inverse covariance of the prior [d, d].
        steps: Maximum number of steps.
        tolerance: Relative decrease of the cost below which the search stops.
        normal: Computes J' W J and J' W r, if the derivatives are not a dense matrix.
    """

    def cost_of(residual: Array, theta: Array) -> float:
        away = theta - prior_mean
        return float(weight @ (residual * residual) + away @ precision @ away)

    damping, diagonal = 1e-4, np.arange(len(theta))
    residual, jacobian = linearise(theta)
    cost = cost_of(residual, theta)
    for _ in range(steps):
        matrix, gradient = normal(residual, jacobian, weight)
        matrix += precision
        gradient += precision @ (theta - prior_mean)
        matrix[diagonal, diagonal] *= 1.0 + damping
        step = np.linalg.solve(matrix, gradient)
        trial = theta - np.minimum(np.maximum(step, -2.0), 2.0)  # parameters are logarithms: at most a factor of e^2
        trial_residual, trial_jacobian = linearise(trial)
        trial_cost = cost_of(trial_residual, trial)
        if not trial_cost < cost:
            damping *= 10.0
            if damping > 1e8:
                break
            continue
        gain = cost - trial_cost
        theta, residual, jacobian, cost = trial, trial_residual, trial_jacobian, trial_cost
        damping = max(damping * 0.1, 1e-8)
        if gain < tolerance * (1.0 + cost):
            break
    return theta
