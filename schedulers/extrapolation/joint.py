"""One shared curve, one progress rate per candidate.

    loss_j(s) = g(r_j s),   g(t) = a + b (t + t0)^-c,   geometric mean of the rates r_j = 1

All candidates train the same network on the same data, so they walk down one curve and differ in how fast they walk.
``r_j`` says what one sample is worth under candidate ``j``. The fit is a maximum a posteriori estimate by
Levenberg-Marquardt with Huber weights; its Gauss-Newton matrix gives
the covariance (Laplace's approximation).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schedulers.extrapolation.base import Array, Curves, Forecast, Forecaster, clean, last_value, share_of_wins
from schedulers.extrapolation.least_squares import levenberg_marquardt

#: Parameters of the shared curve: a, log b, log c, log t0; the log rates follow.
_SHARED = 4
#: Normal priors (mean, standard deviation) of a, log b, log c, log t0 with losses and samples scaled to [0, 1].
_PRIOR_MEAN = np.array([-0.5, 0.0, math.log(0.7), math.log(0.1)])
_PRIOR_STD = np.array([1.0, 2.0, 0.6, 1.5])
#: Prior standard deviation of a log rate, along each direction in which rates can differ.
_RATE_STD = 1.0
#: How far a log rate wanders as training goes on: standard deviation per unit of sqrt(ln(s / samples seen)).
#: A rate measured early is not the rate for ever (gradient noise grows), and no fit of early points can know.
_DRIFT = 0.1
#: Standard deviation of what the curve's form itself gets wrong, as a share of the fall that it forecasts: real curves
#: flatten as the learning rate decays, and no power law knows. Chosen on CIFAR-10, checked on MNIST (benchmarks/).
_MISFIT = 0.25
#: Smallest noise taken for granted, in units of the curves' range.
_NOISE_FLOOR = 2e-3
#: Huber's constant, in standard deviations.
_HUBER = 1.5
#: Most steps of each of the successive fits, and the relative gain below which it ends. All but the last only serve to
#: judge noise and outliers; the valley along which c and t0 trade off is flat, and 15 steps would leave the last one up
#: to a standard deviation short of its floor.
_FITS = ((15, 1e-3), (15, 1e-3), (15, 1e-3), (40, 1e-4))


@dataclass(frozen=True)
class _Fit:
    """What one fit found, in scaled units (samples / sample_scale, (loss - loss_low) / loss_range)."""

    shared: Array  # [4]
    log_rates: Array  # [K]
    covariance: Array  # [4 + K, 4 + K], of the shared parameters and the log rates
    noise: float
    sample_scale: float
    loss_low: float
    loss_range: float
    index: dict[Hashable, int]
    last_samples: Array  # [K], unscaled


class JointForecaster(Forecaster):
    """Fits all curves together; see the module's head for the model."""

    def __init__(self) -> None:
        self._curves: dict[Hashable, tuple[Array, Array]] = {}
        self._fit: _Fit | None = None

    def fit(self, curves: Curves) -> None:
        self._curves = clean(curves)
        usable = {key: curve for key, curve in self._curves.items() if len(curve[0]) >= 3}
        self._fit = _fit(usable) if usable else None

    def forecast(self, key: Hashable, at: float) -> Forecast:
        samples, losses = self._curves[key]
        fit = self._fit
        if fit is None or key not in fit.index:
            return last_value(samples, losses, at)
        j = fit.index[key]
        progress = math.exp(fit.log_rates[j]) * np.array([at, fit.last_samples[j]]) / fit.sample_scale
        (value, now), slope = _curve(fit.shared, progress)
        gradient = np.zeros(len(fit.covariance))
        gradient[:_SHARED] = slope[0, :_SHARED]
        gradient[_SHARED + j] = slope[0, _SHARED]
        variance = float(gradient @ fit.covariance @ gradient)
        variance += float(slope[0, _SHARED]) ** 2 * _drift(fit.last_samples[j], at) + fit.noise**2
        variance += (_MISFIT * float(now - value)) ** 2
        return Forecast(fit.loss_low + fit.loss_range * float(value), fit.loss_range * math.sqrt(variance))

    def rates(self) -> dict[Hashable, tuple[float, float]]:
        """``{key: (log_rate, std)}``; the log rates sum to zero. Curves too short to fit are left out."""
        if self._fit is None:
            return {}
        std = np.sqrt(np.diag(self._fit.covariance)[_SHARED:])
        return {key: (float(self._fit.log_rates[j]), float(std[j])) for key, j in self._fit.index.items()}

    def probability_best(self, at: Mapping[Hashable, float]) -> dict[Hashable, float]:
        """As in the base class, but from progress alone: the shared curve falls, so the furthest along it is best.

        What is uncertain about the curve itself is uncertain for all alike and decides nothing.
        """
        fit = self._fit
        if fit is None or any(key not in fit.index for key in at):
            return super().probability_best(at)
        chosen = np.array([fit.index[key] for key in at])
        samples = np.array(list(at.values()), dtype=float)
        progress = fit.log_rates[chosen] + np.log(samples)
        drift = [_drift(last, s) for last, s in zip(fit.last_samples[chosen], samples, strict=True)]
        covariance = fit.covariance[np.ix_(_SHARED + chosen, _SHARED + chosen)] + np.diag(drift)
        return share_of_wins(tuple(at), -progress, covariance)


def _drift(seen: float, at: float) -> float:
    return _DRIFT**2 * math.log(max(at / seen, 1.0))


def _curve(shared: Array, progress: Array) -> tuple[Array, Array]:
    """g at ``progress`` [n], and its derivatives [n, 5] by a, log b, log c, log t0 and log progress."""
    a, log_b, log_c, log_t0 = shared.tolist()
    c, t0 = math.exp(log_c), math.exp(log_t0)
    base = progress + t0
    log_base = np.log(base)
    fall = np.exp(log_b - c * log_base)
    derivatives = np.empty((len(progress), _SHARED + 1))
    by_base = (-c) * fall / base
    derivatives[:, 0] = 1.0
    derivatives[:, 1] = fall
    derivatives[:, 2] = (-c) * log_base * fall
    derivatives[:, 3] = by_base * t0
    derivatives[:, 4] = by_base * progress
    return a + fall, derivatives


def _fit(curves: Mapping[Hashable, tuple[Array, Array]]) -> _Fit:
    # The order of candidates must not matter, but the search's path, and in a flat valley its end, depends on it.
    keys = sorted(curves, key=lambda key: (curves[key][1][-1], float(curves[key][1].mean())))
    lengths = [len(curves[key][0]) for key in keys]
    samples = np.concatenate([curves[key][0] for key in keys])
    losses = np.concatenate([curves[key][1] for key in keys])
    owner = np.repeat(np.arange(len(keys)), lengths)
    last = np.array([curves[key][0][-1] for key in keys])
    scale = float(samples.max())
    low, high = np.quantile(losses, (0.02, 0.98))
    spread = float(high - low) or max(abs(float(low)), 1.0) * 1e-6  # curves that do not move at all
    t, z = samples / scale, (losses - low) / spread
    recency = np.sqrt(0.2 + 0.8 * samples / last[owner])

    basis = _zero_sum_basis(len(keys))
    theta = _start(t, z, owner, basis)
    prior_mean = np.concatenate([_PRIOR_MEAN, np.zeros(len(keys) - 1)])
    precision = np.concatenate([_PRIOR_STD, np.full(len(keys) - 1, _RATE_STD)]) ** -2.0

    directions = basis[owner]

    def linearise(theta: Array) -> tuple[Array, Array]:
        if len(keys) == 1:  # no rate to find
            value, slope = _curve(theta, t)
            return value - z, slope[:, :_SHARED]
        value, slope = _curve(theta[:_SHARED], np.exp(basis @ theta[_SHARED:])[owner] * t)
        return value - z, np.concatenate([slope[:, :_SHARED], slope[:, _SHARED:] * directions], axis=1)

    noise, weight = 0.1, recency**2
    for steps, tolerance in _FITS:  # noise and outliers are judged anew by each better fit
        theta = levenberg_marquardt(linearise, theta, weight / noise**2, prior_mean, precision, steps, tolerance)
        residual, jacobian = linearise(theta)
        noise = max(1.4826 * float(np.median(np.abs(residual))), _NOISE_FLOOR)
        weight = recency**2 * np.minimum(1.0, _HUBER * noise / np.maximum(np.abs(residual), 1e-12))

    information = (jacobian.T * (weight / (noise**2 * _correlation(residual, owner)))) @ jacobian
    covariance = np.linalg.inv(information + np.diag(precision))
    spread_out = np.zeros((_SHARED + len(keys), len(theta)))
    spread_out[:_SHARED, :_SHARED] = np.eye(_SHARED)
    spread_out[_SHARED:, _SHARED:] = basis
    return _Fit(
        shared=theta[:_SHARED],
        log_rates=basis @ theta[_SHARED:],
        covariance=spread_out @ covariance @ spread_out.T,
        noise=noise,
        sample_scale=scale,
        loss_low=float(low),
        loss_range=spread,
        index={key: j for j, key in enumerate(keys)},
        last_samples=last,
    )


def _zero_sum_basis(count: int) -> Array:
    """An orthonormal basis [count, count - 1] of the vectors that sum to zero (Helmert's)."""
    basis = np.zeros((count, count - 1))
    for column in range(count - 1):
        basis[: column + 1, column] = 1.0
        basis[column + 1, column] = -(column + 1.0)
    return basis / np.sqrt((basis**2).sum(axis=0, keepdims=True)) if count > 1 else basis


def _start(t: Array, z: Array, owner: NDArray[np.intp], basis: Array) -> Array:
    """A first guess: the best of a few curves with equal rates, then each rate alone on a grid."""
    c, t0 = np.meshgrid([0.3, 0.7, 1.5], [0.01, 0.1, 0.5], indexing="ij")
    c, t0 = c.reshape(-1, 1), t0.reshape(-1, 1)
    h = np.exp(-c * np.log(t + t0))
    centred = h - h.mean(axis=1, keepdims=True)
    b = np.maximum(centred @ z / np.maximum((centred**2).sum(axis=1), 1e-12), 1e-3)
    a = z.mean() - b * h.mean(axis=1)
    best = int(np.abs(a[:, None] + b[:, None] * h - z).sum(axis=1).argmin())
    start = np.array([a[best], math.log(b[best]), math.log(c[best, 0]), math.log(t0[best, 0])])
    count = len(basis)
    if count == 1:
        return start
    shifts = np.linspace(-2.5, 2.5, 21)
    value, _ = _curve(start, (np.exp(shifts)[:, None] * t).ravel())
    errors = np.abs(value.reshape(len(shifts), -1) - z)
    summed = np.stack([errors[:, owner == j].sum(axis=1) for j in range(count)])
    return np.concatenate([start, basis.T @ shifts[summed.argmin(axis=1)]])


def _correlation(residual: Array, owner: NDArray[np.intp]) -> float:
    """How many neighbouring residuals count as one: (1 + rho) / (1 - rho) of their first autocorrelation.

    Residuals of a smooth curve hang together, and as many independent points would make the fit look too sure.
    """
    same = owner[1:] == owner[:-1]
    square = float(residual @ residual)
    rho = float(residual[1:][same] @ residual[:-1][same]) / square if square > 0 else 0.0
    rho = min(max(rho, 0.0), 0.9)
    return (1.0 + rho) / (1.0 - rho)
