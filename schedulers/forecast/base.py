"""The interface of every forecaster, and what all share: cleaning curves, and the probability of finishing best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Curves = Mapping[Hashable, tuple[ArrayLike, ArrayLike]]
Ends = Mapping[Hashable, float]

#: Draws behind a probability of being best. The draws are fixed, so equal curves give equal answers.
_DRAWS = 2048


class Forecast(NamedTuple):
    """A loss expected at some point of the run: mean and standard deviation, in units of the loss."""

    mean: float
    std: float

    def interval(self, z: float = 1.2816) -> tuple[float, float]:
        """The central interval of ``z`` standard deviations on either side; the default covers 80 %."""
        return self.mean - z * self.std, self.mean + z * self.std


class Forecaster(ABC):
    """Extrapolates the loss curves of several candidates.

    ``fit`` takes everything known so far and replaces what an earlier call knew. No method raises on what a curve
    holds: points that are not finite are left out, and a curve with fewer than three points is forecast by its last
    value with a wide standard deviation (a curve without any: mean nan, standard deviation inf).
    """

    @abstractmethod
    def fit(self, curves: Curves, ends: Ends | None = None) -> None:
        """Learns from ``{key: (samples, losses)}``; both are one-dimensional, of equal length.

        ``ends``: samples at which each run, and with it the decay of its learning rate, ends; None: it does not decay.
        """

    @abstractmethod
    def forecast(self, key: Hashable, at: float) -> Forecast:
        """The loss of candidate ``key`` once it has seen ``at`` samples.

        Raises:
            KeyError: ``key`` was not among the fitted curves.
        """

    def probability_best(self, at: Mapping[Hashable, float]) -> dict[Hashable, float]:
        """How probable it is that each key's loss is the lowest, each at its own number of samples ``at[key]``.

        Forecasts are taken as independent normals; a forecaster that knows their correlation overrides this.
        """
        forecasts = [self.forecast(key, samples) for key, samples in at.items()]
        mean = np.array([f.mean for f in forecasts])
        std = np.array([f.std for f in forecasts])
        return share_of_wins(tuple(at), mean, np.diag(np.where(np.isfinite(std), std, 0.0) ** 2))


def share_of_wins(keys: Sequence[Hashable], mean: Array, covariance: Array) -> dict[Hashable, float]:
    """The probability of each key to be the smallest of a multivariate normal; a mean of nan never wins.

    When no mean is finite nothing is known, and all are equally probable.
    """
    known = np.flatnonzero(np.isfinite(mean))
    if len(known) == 0:
        return dict.fromkeys(keys, 1.0 / max(len(keys), 1))
    # Not Cholesky's: a covariance that is singular but for rounding has a root all the same.
    values, vectors = np.linalg.eigh(np.nan_to_num(covariance[np.ix_(known, known)]))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    draws = mean[known] + np.random.default_rng(0).standard_normal((_DRAWS, len(known))) @ root.T
    best = draws == draws.min(axis=1, keepdims=True)  # candidates that tie exactly share the win
    wins = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    probabilities = dict.fromkeys(keys, 0.0)
    probabilities.update({keys[index]: float(win) for index, win in zip(known.tolist(), wins, strict=True)})
    return probabilities


def clean(curves: Curves) -> dict[Hashable, tuple[Array, Array]]:
    """Each curve's finite points at positive samples, in the order of samples."""
    kept: dict[Hashable, tuple[Array, Array]] = {}
    for key, (samples, losses) in curves.items():
        s, y = np.asarray(samples, dtype=float).ravel(), np.asarray(losses, dtype=float).ravel()
        length = min(len(s), len(y))
        s, y = s[:length], y[:length]
        finite = np.isfinite(s) & np.isfinite(y) & (s > 0) & (np.abs(y) < 1e30)
        order = np.argsort(s[finite], kind="stable")
        kept[key] = (s[finite][order], y[finite][order])
    return kept


def last_value(samples: Array, losses: Array, at: float) -> Forecast:
    """The last loss seen, with a deviation that grows with the distance of the forecast.

    A random walk's deviation grows with the square root of its length; its step is read off the curve's own changes.
    Before three points there is no step to read, and the deviation is as wide as the loss itself.
    """
    if len(losses) == 0:
        return Forecast(float("nan"), float("inf"))
    if len(losses) < 3:
        return Forecast(float(losses[-1]), max(abs(float(losses[-1])), 1e-6))
    step = float(np.sqrt(np.mean(np.diff(losses)[-5:] ** 2)))
    spacing = float(np.mean(np.diff(samples)[-5:])) or 1.0
    length = max((at - float(samples[-1])) / spacing, 0.0) + 1.0
    return Forecast(float(losses[-1]), max(step * length**0.5, 1e-9))
