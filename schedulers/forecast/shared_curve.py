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
from schedulers.forecast.least_squares import Linearise, Normal, levenberg_marquardt, normal_equations
from schedulers.forecast.residuals import Walk, fit_walk

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
    walk: Walk  # of the residuals
    frontier: float  # the furthest progress that was observed
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

    shared_mean, shared_std = _prior(tracks.head_start / scale)
    prior_mean = np.concatenate([shared_mean, (rate_mean - rate_mean.mean())[:-1]])
    precision = _reduced(np.diag(np.concatenate([shared_std, rate_std]) ** -2.0))
    theta = _start(n, z, prior_mean)
    linearise, normal = _joint_problem(n, z) if _is_race(n) else _run_problem(n, z)

    noise, weight = 0.1, recency**2
    for steps, tolerance in _FITS:  # each fit estimates noise and outliers again
        theta = levenberg_marquardt(
            linearise, theta, weight / noise**2, prior_mean, precision, steps, tolerance, normal
        )
        residual, slope = linearise(theta)
        (median,) = _quantiles(np.abs(residual), 0.5)
        noise = max(1.4826 * median, _NOISE_FLOOR)
        weight = recency**2 * np.minimum(1.0, _HUBER * noise / np.maximum(np.abs(residual), 1e-12))

    information, _ = normal(residual, slope, weight / (noise**2 * _correlation(residual, tracks.track)))
    covariance = np.linalg.inv(information + precision)
    spread_out = np.eye(SHARED + count)[:, :-1]
    spread_out[-1, SHARED:] = -1.0
    log_rates = _all_rates(theta)
    progress = np.maximum((n * np.exp(log_rates)).sum(axis=1), 1e-300)
    return SharedCurve(
        shared=theta[:SHARED],
        log_rates=log_rates,
        covariance=spread_out @ covariance @ spread_out.T,
        noise=noise,
        walk=fit_walk(-residual, np.log(progress), tracks.track),
        frontier=float(progress.max()),
        sample_scale=scale,
        loss_low=low,
        loss_range=spread,
    )


def _is_race(n: Array) -> bool:
    """Returns whether every observation was exposed to one candidate, and those of each candidate are adjacent."""
    exposed = n > 0
    owner = exposed.argmax(axis=1)
    return bool(exposed.sum() == len(n) and (np.diff(owner) >= 0).all() and exposed.any(axis=0).all())


def _joint_problem(n: Array, z: Array) -> tuple[Linearise, Normal]:
    """Returns the derivatives of a race, with those by the efficiencies in one column [n, 5]: it takes O(n + K^2)."""
    count = n.shape[1]
    owner, own = n.argmax(axis=1), n.max(axis=1)
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    diagonal = SHARED + np.arange(count)

    def linearise(theta: Array) -> tuple[Array, Array]:
        progress = own if count == 1 else np.maximum(own * np.exp(_all_rates(theta))[owner], 1e-300)
        value, slope = curve(theta[:SHARED], progress)
        return value - z, slope

    def normal(residual: Array, slope: Array, weight: Array) -> tuple[Array, Array]:
        if count == 1:
            return normal_equations(residual, slope[:, :SHARED], weight)
        weighted = slope.T * weight
        matrix, gradient = np.zeros((SHARED + count, SHARED + count)), np.empty(SHARED + count)
        by_rates = np.add.reduceat(weighted * slope[:, SHARED], begins, axis=1)  # [5, K]
        matrix[:SHARED, :SHARED] = weighted[:SHARED] @ slope[:, :SHARED]
        matrix[:SHARED, SHARED:], matrix[SHARED:, :SHARED] = by_rates[:SHARED], by_rates[:SHARED].T
        matrix[diagonal, diagonal] = by_rates[SHARED]
        gradient[:SHARED] = weighted[:SHARED] @ residual
        gradient[SHARED:] = np.add.reduceat(weighted[SHARED] * residual, begins)
        gradient[SHARED:-1] -= gradient[-1]
        return _reduced(matrix), gradient[:-1]

    return linearise, normal


def _run_problem(n: Array, z: Array) -> tuple[Linearise, Normal]:
    """Returns the derivatives of one run that trained with several candidates in turn, as a dense matrix [n, 3 + K]."""

    def linearise(theta: Array) -> tuple[Array, Array]:
        part = n * np.exp(_all_rates(theta))
        progress = np.maximum(part.sum(axis=1), 1e-300)  # scales may differ that much
        value, slope = curve(theta[:SHARED], progress)
        by_rates = part * (slope[:, SHARED] / progress)[:, None]
        return value - z, np.concatenate([slope[:, :SHARED], by_rates[:, :-1] - by_rates[:, -1:]], axis=1)

    return linearise, normal_equations


def _all_rates(theta: Array) -> Array:
    """Returns all log efficiencies, which sum to zero; ``theta`` has all but the last."""
    rates = np.append(theta[SHARED:], 0.0)
    rates[-1] = -rates.sum()
    return rates


def _reduced(matrix: Array) -> Array:
    """Converts a quadratic form of all log efficiencies into one of all but the last [3 + K, 3 + K]."""
    reduced: Array = matrix[:-1, :-1].copy()
    reduced[SHARED:] -= matrix[-1, :-1]
    reduced[:, SHARED:] -= matrix[:-1, -1:]
    reduced[SHARED:, SHARED:] += matrix[-1, -1]
    return reduced


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


def _start(n: Array, z: Array, prior_mean: Array) -> Array:
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
    found = shifts[(errors @ exposed).argmin(axis=0)]
    return np.concatenate([start, (found - found.mean())[:-1]])


def _correlation(residual: Array, track: NDArray[np.intp]) -> float:
    """Returns how many correlated residuals count as one: (1 + rho) / (1 - rho) for the first autocorrelation rho.

    Without it the fit would be overconfident, because the residuals of smooth curves are correlated.
    """
    same = track[1:] == track[:-1]
    square = float(residual @ residual)
    rho = float(residual[1:][same] @ residual[:-1][same]) / square if square > 0 else 0.0
    rho = min(max(rho, 0.0), 0.9)
    return (1.0 + rho) / (1.0 - rho)
