"""The interface of forecasters, and what they share: cleaning curves, and the probability of finishing best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Curves = Mapping[Hashable, tuple[ArrayLike, ArrayLike]]
Ends = Mapping[Hashable, float]
#: Samples and learning rates of reports, of equal length; they may extend beyond the curve.
LearningRates = Mapping[Hashable, tuple[ArrayLike, ArrayLike]]

#: Draws that estimate the probability of finishing best. The seed is fixed, so that results are reproducible.
_DRAWS = 2048


class Forecast(NamedTuple):
    """A forecast loss: mean and standard deviation."""

    mean: float
    std: float

    def interval(self, z: float = 1.2816) -> tuple[float, float]:
        """Returns the interval of ``z`` standard deviations around the mean; by default it covers 80 %."""
        return self.mean - z * self.std, self.mean + z * self.std


@dataclass(frozen=True)
class TieBreak:
    """Candidates whose losses differ by at most ``tolerance`` are equal; the fastest of them counts as the best.

    Args:
        tolerance: In units of the loss, at least 0.
        throughput: Throughput of every candidate that is compared.
    """

    tolerance: float
    throughput: Mapping[Hashable, float]

    def best(self, losses: Mapping[Hashable, float]) -> Hashable:
        """Returns the fastest of the candidates whose losses are within the tolerance of the lowest.

        Of equally fast ones, it is the one with the lowest loss.
        """
        limit = min(losses.values()) + self.tolerance
        equal = (key for key, loss in losses.items() if loss <= limit)
        return max(equal, key=lambda key: (self.throughput[key], -losses[key]))


class Forecaster(ABC):
    """Extrapolates the loss curves of several candidates.

    Every call of ``fit`` takes the whole curves. Points that are not finite are ignored. A curve with fewer than three
    points is forecast by its last value with a large standard deviation, unless it is fitted jointly with a longer one.
    An empty curve is forecast by mean nan and standard deviation inf.
    """

    @abstractmethod
    def fit(self, curves: Curves, ends: Ends | None = None, learning_rates: LearningRates | None = None) -> None:
        """Fits the curves.

        Args:
            curves: ``{key: (samples, losses)}``, one-dimensional and of equal length.
            ends: Samples at which each run ends, and at which its learning rate has decayed to zero unless
                ``learning_rates`` says otherwise; None: the learning rate is constant.
            learning_rates: Learning rates, for those curves whose runs report them, from the curve's start on.
        """

    @abstractmethod
    def forecast(self, key: Hashable, at: float) -> Forecast:
        """Forecasts the loss of candidate ``key`` after ``at`` samples.

        Raises:
            KeyError: The candidate has no fitted curve.
        """

    def probability_best(
        self, at: Mapping[Hashable, float], tie_break: TieBreak | None = None
    ) -> dict[Hashable, float]:
        """Returns the probability that each candidate's loss is the lowest, at ``at[key]`` samples each.

        Forecasts are treated as independent normal variables, unless a subclass knows their correlation.

        Args:
            at: Samples of every candidate.
            tie_break: Chooses between candidates whose losses are almost equal; None: the lowest loss is the best.
        """
        forecasts = [self.forecast(key, samples) for key, samples in at.items()]
        mean = np.array([f.mean for f in forecasts])
        std = np.array([f.std for f in forecasts])
        return win_probabilities(tuple(at), mean, np.diag(np.where(np.isfinite(std), std, 0.0) ** 2), tie_break)


def win_probabilities(
    keys: Sequence[Hashable], mean: Array, covariance: Array, tie_break: TieBreak | None = None
) -> dict[Hashable, float]:
    """Returns the probability that each component of a multivariate normal is the smallest.

    With ``tie_break``, it is the probability that the component is the fastest of those that are almost the smallest.
    Components with a mean of nan have probability 0; if all means are nan, all have the same probability.
    """
    known = np.flatnonzero(np.isfinite(mean))
    if len(known) == 0:
        return dict.fromkeys(keys, 1.0 / max(len(keys), 1))
    # Not Cholesky: the covariance may be singular up to rounding.
    values, vectors = np.linalg.eigh(np.nan_to_num(covariance[np.ix_(known, known)]))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    draws = mean[known] + np.random.default_rng(0).standard_normal((_DRAWS, len(known))) @ root.T
    best = draws == draws.min(axis=1, keepdims=True)  # exact ties share the win
    if tie_break is not None:
        equal = draws <= draws.min(axis=1, keepdims=True) + tie_break.tolerance
        speed = np.where(equal, [tie_break.throughput[keys[index]] for index in known.tolist()], -np.inf)
        best = speed == speed.max(axis=1, keepdims=True)
    wins = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    probabilities = dict.fromkeys(keys, 0.0)
    probabilities.update({keys[index]: float(win) for index, win in zip(known.tolist(), wins, strict=True)})
    return probabilities


def clean(curves: Curves) -> dict[Hashable, tuple[Array, Array]]:
    """Returns the finite points of each curve at positive samples, sorted by samples."""
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
    """Forecasts the last loss, with a standard deviation that grows with the square root of the distance.

    As for a random walk whose step is estimated from the curve. With fewer than three points, the standard deviation
    is the loss itself.
    """
    if len(losses) == 0:
        return Forecast(float("nan"), float("inf"))
    if len(losses) < 3:
        return Forecast(float(losses[-1]), max(abs(float(losses[-1])), 1e-6))
    step = float(np.sqrt(np.mean(np.diff(losses)[-5:] ** 2)))
    spacing = float(np.mean(np.diff(samples)[-5:])) or 1.0
    length = max((at - float(samples[-1])) / spacing, 0.0) + 1.0
    return Forecast(float(losses[-1]), max(step * length**0.5, 1e-9))
