"""One shared curve, one progress rate per candidate.

    loss_j(s) = g(r_j s),   g(t) = a + b (t + t0)^-c,   geometric mean of the rates r_j = 1

All candidates train the same network on the same data, so they walk down one curve and differ in how fast they walk.
``r_j`` says what one sample is worth under candidate ``j``. ``shared_curve`` holds the fit.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from schedulers.extrapolation.base import Array, Curves, Forecast, Forecaster, clean, last_value, share_of_wins
from schedulers.extrapolation.shared_curve import RATE_STD, SHARED, SharedCurve, Tracks, curve, fit_shared_curve

#: How far a log rate wanders as training goes on: standard deviation per unit of sqrt(ln(progress then / now)).
#: A rate measured early is not the rate for ever (gradient noise grows), and no fit of early points can know.
_DRIFT = 0.1
#: Standard deviation of what the curve's form itself gets wrong, as a share of the fall that it forecasts: real curves
#: flatten as the learning rate decays, and no power law knows. Chosen on CIFAR-10, checked on MNIST (benchmarks/).
_MISFIT = 0.25


@dataclass(frozen=True)
class _Standing:
    """A fitted curve, and where each candidate would go on from."""

    curve: SharedCurve
    index: dict[Hashable, int]
    behind: Array  # [K, K]: the exposure of the network that candidate j would train on


class JointForecaster(Forecaster):
    """Fits all curves together; see the module's head for the model.

    Args:
        head_start: Samples that all candidates' common network had seen before the curves' samples count from zero.
        rates: What is known of log rates beforehand: ``{key: (mean, standard deviation)}``.
    """

    def __init__(self, head_start: float = 0.0, rates: Mapping[Any, tuple[float, float]] | None = None) -> None:
        self._head_start, self._prior = head_start, dict(rates or {})
        self._curves: dict[Hashable, tuple[Array, Array]] = {}
        self._standing: _Standing | None = None

    def fit(self, curves: Curves) -> None:
        self._curves = clean(curves)
        usable = {key: kept for key, kept in self._curves.items() if len(kept[0]) >= 3}
        # The order of candidates must not matter, but the search's path, and in a flat valley its end, depends on it.
        keys = sorted(usable, key=lambda key: (usable[key][1][-1], float(usable[key][1].mean())))
        if not keys:
            self._standing = None
            return
        owner = np.repeat(np.arange(len(keys)), [len(usable[key][0]) for key in keys])
        exposure = np.zeros((len(owner), len(keys)))
        exposure[np.arange(len(owner)), owner] = np.concatenate([usable[key][0] for key in keys])
        losses = np.concatenate([usable[key][1] for key in keys])
        behind = np.diag([usable[key][0][-1] for key in keys])
        self._solve(keys, Tracks(exposure, losses, owner, self._head_start), behind)

    def fit_run(self, keys: Sequence[Hashable], exposure: Array, losses: Array) -> None:
        """Learns from one run that trained under several candidates in turn.

        Afterwards ``forecast(key, at)`` is of this run going on under ``key`` until it has seen ``at`` samples.

        Args:
            keys: All candidates, K of them, also those that have not had a turn.
            exposure: Samples under each up to each report [n, K].
            losses: [n].
        """
        order = sorted(range(len(keys)), key=lambda j: str(keys[j]))
        finite = np.isfinite(losses) & (exposure.sum(axis=1) > 0)
        exposure, losses = exposure[:, order][finite], losses[finite]
        keys = [keys[j] for j in order]
        samples = exposure.sum(axis=1)
        self._curves = dict.fromkeys(keys, (samples, losses))
        if len(losses) < 3:
            self._standing = None
            return
        tracks = Tracks(exposure, losses, np.zeros(len(losses), dtype=np.intp), self._head_start)
        self._solve(keys, tracks, np.repeat(exposure[-1:], len(keys), axis=0))

    def _solve(self, keys: Sequence[Hashable], tracks: Tracks, behind: Array) -> None:
        known = [self._prior.get(key, (0.0, RATE_STD)) for key in keys]
        fitted = fit_shared_curve(tracks, np.array([mean for mean, _ in known]), np.array([std for _, std in known]))
        self._standing = _Standing(fitted, {key: j for j, key in enumerate(keys)}, behind)

    def forecast(self, key: Hashable, at: float) -> Forecast:
        samples, losses = self._curves[key]
        standing = self._standing
        if standing is None or key not in standing.index:
            return last_value(samples, losses, at)
        fit, j = standing.curve, standing.index[key]
        now, then, by_rates = self._progress(standing, np.array([j]), np.array([at]))
        (value, value_now), slope = curve(fit.shared, np.concatenate([then, now]))
        gradient = np.concatenate([slope[0, :SHARED], slope[0, SHARED] * by_rates[0]])
        variance = float(gradient @ fit.covariance @ gradient) + fit.noise**2
        variance += float(slope[0, SHARED]) ** 2 * float(_drift(now, then)[0])
        variance += (_MISFIT * float(value_now - value)) ** 2
        return Forecast(fit.loss_low + fit.loss_range * float(value), fit.loss_range * math.sqrt(variance))

    def rates(self) -> dict[Hashable, tuple[float, float]]:
        """``{key: (log_rate, std)}``; the log rates sum to zero. Curves too short to fit are left out."""
        if self._standing is None:
            return {}
        fit = self._standing.curve
        std = np.sqrt(np.diag(fit.covariance)[SHARED:])
        return {key: (float(fit.log_rates[j]), float(std[j])) for key, j in self._standing.index.items()}

    def probability_best(self, at: Mapping[Hashable, float]) -> dict[Hashable, float]:
        """As in the base class, but from progress alone: the shared curve falls, so the furthest along it is best.

        What is uncertain about the curve itself is uncertain for all alike and decides nothing.
        """
        standing = self._standing
        if standing is None or any(key not in standing.index for key in at):
            return super().probability_best(at)
        chosen = np.array([standing.index[key] for key in at])
        now, then, by_rates = self._progress(standing, chosen, np.array(list(at.values()), dtype=float))
        covariance = by_rates @ standing.curve.covariance[SHARED:, SHARED:] @ by_rates.T + np.diag(_drift(now, then))
        return share_of_wins(tuple(at), -np.log(then), covariance)

    @staticmethod
    def _progress(standing: _Standing, chosen: Array, at: Array) -> tuple[Array, Array, Array]:
        """Scaled progress now [m] and at ``at`` samples [m], and the derivative of the latter's logarithm by the
        log rates [m, K], for the candidates ``chosen`` [m]."""
        fit, behind = standing.curve, standing.behind[chosen]
        rates = np.exp(fit.log_rates) / fit.sample_scale
        part = behind * rates
        now = part.sum(axis=1)
        rows = np.arange(len(chosen))
        part[rows, chosen] += rates[chosen] * (at - behind.sum(axis=1))
        then = np.maximum(part.sum(axis=1), 1e-12)
        return now, then, part / then[:, None]


def _drift(now: Array, then: Array) -> Array:
    return _DRIFT**2 * np.log(np.maximum(then / now, 1.0))
