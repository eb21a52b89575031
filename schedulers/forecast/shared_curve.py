"""Fits the shared loss curve and the statistical efficiencies of all candidates.

    loss = g(t),   g(t) = a + b (t + t0)^-c,   t = sum_j r_j n_j,   geometric mean of the efficiencies r_j = 1

The *exposure* ``n_j`` is the number of samples that a network has seen under candidate ``j``. In a race every network
is exposed to one candidate; in a run that swaps batch sizes one network is exposed to several. The fit is a maximum a
posteriori estimate by Levenberg-Marquardt with Huber weights; the Gauss-Newton matrix gives the covariance (Laplace
approximation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schedulers.forecast.base import Array
from schedulers.forecast.least_squares import levenberg_marquardt

#: Parameters of the curve: a, log b, log c, log t0; followed by the log efficiencies.
SHARED = 4
#: Normal priors (mean, standard deviation) of a, log b, log c, log t0 with losses and samples scaled to [0, 1].
_PRIOR_MEAN = np.array([-0.5, 0.0, math.log(0.7), math.log(0.1)])
_PRIOR_STD = np.array([1.0, 2.0, 0.6, 1.5])
#: Default prior standard deviation of a log efficiency.
RATE_STD = 1.0
#: Lower bound of the noise, in units of the curves' range.
_NOISE_FLOOR = 2e-3
#: The initial guess is chosen from these exponents and multiples of the prior's t0 [9, 1].
_START_C, _START_T0 = np.repeat([0.3, 0.7, 1.5], 3)[:, None], np.tile([0.1, 1.0, 5.0], 3)[:, None]
#: Huber's constant, in standard deviations.
_HUBER = 1.5
#: Maximum steps and tolerance of the successive fits. All but the last only estimate noise and outliers. The cost is
#: flat where c and t0 trade off; after 15 steps the last fit would be up to a standard deviation from the minimum.
_FITS = ((15, 1e-3), (15, 1e-3), (15, 1e-3), (40, 1e-4))


@dataclass(frozen=True)
class Tracks:
    """Losses of one or more networks with their exposures.

    Args:
        exposure: Samples under each of the K candidates up to each observation [n, K]; no row is all zero.
        losses: [n].
        track: Index of the network of each observation [n], ascending from 0; oldest observation first.
        head_start: Samples that all networks had seen before.
    """

    exposure: Array
    losses: Array
    track: NDArray[np.intp]
    head_start: float = 0.0


@dataclass(frozen=True)
class SharedCurve:
    """A fitted curve in scaled units (samples / sample_scale, (loss - loss_low) / loss_range)."""

    shared: Array  # [4]
    log_rates: Array  # [K]
    covariance: Array  # [4 + K, 4 + K], of the shared parameters and the log efficiencies
    noise: float
    sample_scale: float
    loss_low: float
    loss_range: float


def curve(shared: Array, progress: Array) -> tuple[Array, Array]:
    """Returns g at ``progress`` [n] and its derivatives [n, 5] by a, log b, log c, log t0 and log progress."""
    a, log_b, log_c, log_t0 = shared.tolist()
    c, t0 = math.exp(log_c), math.exp(log_t0)
    base = progress + t0
    log_base = np.log(base)
    fall = np.exp(log_b - c * log_base)
    derivatives = np.empty((len(progress), SHARED + 1))
    by_base = (-c) * fall / base
    derivatives[:, 0] = 1.0
    derivatives[:, 1] = fall
    derivatives[:, 2] = (-c) * log_base * fall
    derivatives[:, 3] = by_base * t0
    derivatives[:, 4] = by_base * progress
    return a + fall, derivatives


def fit_shared_curve(tracks: Tracks, rate_mean: Array, rate_std: Array) -> SharedCurve:
    """Fits the curve and the efficiencies.

    Args:
        tracks: At least one observation.
        rate_mean: Prior means of the log efficiencies [K], up to a common constant.
        rate_std: Prior standard deviations [K].
    """
    count = tracks.exposure.shape[1]
    samples = tracks.exposure.sum(axis=1)
    last = samples[np.searchsorted(tracks.track, np.arange(tracks.track[-1] + 1), side="right") - 1]
    scale = float(samples.max())
    low, high = _quantiles(tracks.losses, 0.02, 0.98)
    spread = high - low or max(abs(low), 1.0) * 1e-6  # constant curves
    n, z = tracks.exposure / scale, (tracks.losses - low) / spread
    recency = np.sqrt(0.2 + 0.8 * samples / last[tracks.track])

    basis = _zero_sum_basis(count)
    shared_mean, shared_std = _prior(tracks.head_start / scale)
    prior_mean = np.concatenate([shared_mean, basis.T @ rate_mean])
    precision = np.zeros((len(prior_mean), len(prior_mean)))
    precision[:SHARED, :SHARED] = np.diag(shared_std**-2.0)
    precision[SHARED:, SHARED:] = (basis.T * rate_std**-2.0) @ basis
    theta = _start(n, z, prior_mean, basis)
    alone = n[:, 0]

    def linearise(theta: Array) -> tuple[Array, Array]:
        if count == 1:  # no efficiency to fit
            value, slope = curve(theta, alone)
            return value - z, slope[:, :SHARED]
        part = n * np.exp(basis @ theta[SHARED:])
        progress = np.maximum(part.sum(axis=1), 1e-300)  # scales may differ that much
        value, slope = curve(theta[:SHARED], progress)
        by_rates = (part * (slope[:, SHARED] / progress)[:, None]) @ basis
        return value - z, np.concatenate([slope[:, :SHARED], by_rates], axis=1)

    noise, weight = 0.1, recency**2
    for steps, tolerance in _FITS:  # each fit estimates noise and outliers again
        theta = levenberg_marquardt(linearise, theta, weight / noise**2, prior_mean, precision, steps, tolerance)
        residual, jacobian = linearise(theta)
        (median,) = _quantiles(np.abs(residual), 0.5)
        noise = max(1.4826 * median, _NOISE_FLOOR)
        weight = recency**2 * np.minimum(1.0, _HUBER * noise / np.maximum(np.abs(residual), 1e-12))

    information = (jacobian.T * (weight / (noise**2 * _correlation(residual, tracks.track)))) @ jacobian
    covariance = np.linalg.inv(information + precision)
    spread_out = np.zeros((SHARED + count, len(theta)))
    spread_out[:SHARED, :SHARED] = np.eye(SHARED)
    spread_out[SHARED:, SHARED:] = basis
    return SharedCurve(
        shared=theta[:SHARED],
        log_rates=basis @ theta[SHARED:],
        covariance=spread_out @ covariance @ spread_out.T,
        noise=noise,
        sample_scale=scale,
        loss_low=low,
        loss_range=spread,
    )


def _quantiles(values: Array, *levels: float) -> list[float]:
    """Same as ``np.quantile``, which would take a tenth of the time of a small fit."""
    ordered, last = np.sort(values), len(values) - 1
    floors = [min(int(level * last), max(last - 1, 0)) for level in levels]
    return [
        float(ordered[low] + (level * last - low) * (ordered[min(low + 1, last)] - ordered[low]))
        for level, low in zip(levels, floors, strict=True)
    ]


def _prior(head_start: float) -> tuple[Array, Array]:
    """Returns prior means and standard deviations of a, log b, log c, log t0 for curves that start at ``head_start``.

    The observed part of a curve that starts late is a small part of its decrease, so the prior is wider.
    """
    a, log_b, log_c, log_t0 = _PRIOR_MEAN.tolist()
    t0 = math.exp(log_t0) + head_start
    log_b += math.exp(log_c) * (math.log(t0) - log_t0) + math.log1p(head_start)
    mean = np.array([a * (1.0 + head_start), log_b, log_c, math.log(t0)])
    return mean, _PRIOR_STD * np.array([1.0 + head_start, 1.0, 1.0, 1.0])


def _zero_sum_basis(count: int) -> Array:
    """Returns an orthonormal basis [count, count - 1] of the vectors that sum to zero (Helmert)."""
    basis = np.zeros((count, count - 1))
    for column in range(count - 1):
        basis[: column + 1, column] = 1.0
        basis[column + 1, column] = -(column + 1.0)
    return basis / np.sqrt((basis**2).sum(axis=0, keepdims=True)) if count > 1 else basis


def _start(n: Array, z: Array, prior_mean: Array, basis: Array) -> Array:
    """Returns initial parameters: the best curve with equal efficiencies, then each efficiency from a grid."""
    t = n.sum(axis=1)
    c, t0 = _START_C, math.exp(prior_mean[3]) * _START_T0
    h = np.exp(-c * np.log(t + t0))
    centred = h - h.mean(axis=1, keepdims=True)
    b = np.maximum(centred @ z / np.maximum((centred**2).sum(axis=1), 1e-12), 1e-3)
    a = z.mean() - b * h.mean(axis=1)
    best = int(np.abs(a[:, None] + b[:, None] * h - z).sum(axis=1).argmin())
    start = np.array([a[best], math.log(b[best]), math.log(c[best, 0]), math.log(t0[best, 0])])
    exposed = n > 0
    if n.shape[1] == 1 or not (exposed.any(axis=0).all() and (exposed.sum(axis=1) == 1).all()):
        return np.concatenate([start, prior_mean[SHARED:]])
    shifts = np.linspace(-2.5, 2.5, 21)
    value, _ = curve(start, (np.exp(shifts)[:, None] * t).ravel())
    errors = np.abs(value.reshape(len(shifts), -1) - z)
    return np.concatenate([start, basis.T @ shifts[(errors @ exposed).argmin(axis=0)]])


def _correlation(residual: Array, track: NDArray[np.intp]) -> float:
    """Returns how many correlated residuals count as one: (1 + rho) / (1 - rho) for the first autocorrelation rho.

    Without it the fit would be overconfident, because the residuals of smooth curves are correlated.
    """
    same = track[1:] == track[:-1]
    square = float(residual @ residual)
    rho = float(residual[1:][same] @ residual[:-1][same]) / square if square > 0 else 0.0
    rho = min(max(rho, 0.0), 0.9)
    return (1.0 + rho) / (1.0 - rho)
