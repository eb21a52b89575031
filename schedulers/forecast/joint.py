"""A joint model of all loss curves: one shared curve, and one statistical efficiency per candidate.

    loss_j(s) = g(r_j s),   g(t) = a + b (t + t0)^-c,   geometric mean of the efficiencies r_j = 1

All candidates train the same network on the same data, so their losses follow one curve at different speeds. The
statistical efficiency ``r_j`` (Pollux, OSDI 2021) is the progress per sample under candidate ``j``. If the learning
rate changes, ``s`` is replaced by the equivalent samples at the full learning rate (``schedule_clock``).
``shared_curve`` fits the model. Curves that deviate from it keep their deviation in the forecast (``residuals``).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schedulers.forecast.base import (
    Array,
    Curves,
    Ends,
    Forecast,
    Forecaster,
    LearningRates,
    TieBreak,
    clean,
    last_value,
    win_probabilities,
)
from schedulers.forecast.schedule_clock import Clock, annealed, schedule_clock
from schedulers.forecast.shared_curve import RATE_STD, SHARED, SharedCurve, Tracks, curve, fit_shared_curve

#: Drift of the log efficiency during training: standard deviation per unit of sqrt(ln(progress then / now)). Gradient
#: noise grows, so an efficiency that is measured early changes later.
_DRIFT = 0.1
#: Error of the power law: a standard deviation of (0.1 + 0.2 x) x, with x = ln(progress then / furthest observed), of
#: the decrease per unit of log progress there.
_MISFIT = (0.1, 0.2)
#: The variance of the deviation of a curve (``residuals``) grows by x + 2 x^2 steps, since a part is a trend. These
#: constants are such that the intervals cover recorded and public curves alike (benchmarks/public_curves.py).
_TREND = 2.0
#: Few reports determine a curve badly: with n, the variance is larger by the factor 1 + 4 / (n - 2).
_FEW = 4.0


@dataclass(frozen=True)
class _Fit:
    """A fitted curve, and the point from which each candidate continues."""

    curve: SharedCurve
    index: dict[Hashable, int]
    last_exposure: Array  # [K, K]: equivalent samples of the network that candidate j continues, under each candidate
    samples: Array  # [K]: samples of that network
    clocks: Sequence[Clock]  # [K]
    track: NDArray[np.intp]  # [K]: the network that candidate j continues
    reports: int  # of the longest curve


class JointForecaster(Forecaster):
    """Fits all curves jointly; the model is described above.

    Args:
        head_start: Samples that the candidates' common network had seen before the curves start.
        rates: Priors of the log efficiencies: ``{key: (mean, standard deviation)}``.
        averaged: Whether the losses are those of averaged weights. It matters if learning rates are reported.
    """

    def __init__(
        self,
        head_start: float = 0.0,
        rates: Mapping[Any, tuple[float, float]] | None = None,
        *,
        averaged: bool = True,
    ) -> None:
        self._head_start, self._prior, self._averaged = head_start, dict(rates or {}), averaged
        self._curves: dict[Hashable, tuple[Array, Array]] = {}
        self._fitted: _Fit | None = None

    def fit(self, curves: Curves, ends: Ends | None = None, learning_rates: LearningRates | None = None) -> None:
        self._curves = clean(curves)
        usable = {key: kept for key, kept in self._curves.items() if len(kept[0])}
        if max((len(samples) for samples, _ in usable.values()), default=0) < 3:
            self._fitted = None
            return
        # Sorted, because the result of the search depends slightly on the order of candidates.
        keys = sorted(usable, key=lambda key: (usable[key][1][-1], float(usable[key][1].mean())))
        owner = np.repeat(np.arange(len(keys)), [len(usable[key][0]) for key in keys])
        exposure = np.zeros((len(owner), len(keys)))
        clocks = [self._clock((ends or {}).get(key, math.inf), (learning_rates or {}).get(key)) for key in keys]
        paced = [self._paced(clock, usable[key][0]) for key, clock in zip(keys, clocks, strict=True)]
        exposure[np.arange(len(owner)), owner] = np.concatenate(paced)
        losses = np.concatenate([usable[key][1] for key in keys])
        samples = np.array([usable[key][0][-1] for key in keys])
        last = np.diag([u[-1] for u in paced])
        self._solve(keys, exposure, losses, owner, last, samples, clocks, np.arange(len(keys)))

    def fit_run(self, keys: Sequence[Hashable], exposure: Array, losses: Array, end: float = math.inf) -> None:
        """Fits one run that trained with several candidates in turn.

        Afterwards ``forecast(key, at)`` forecasts this run if it continues with ``key`` until ``at`` samples.

        Args:
            keys: All K candidates, including those that were not used yet.
            exposure: Samples under each candidate up to each report since the head start [n, K].
            losses: [n].
            end: Samples, including the head start, at which the learning rate has decayed to zero; inf: it is constant.
        """
        count = len(keys)
        order = sorted(range(count), key=lambda j: str(keys[j]))
        finite = np.isfinite(losses) & (exposure.sum(axis=1) > 0)
        exposure, losses, keys = exposure[:, order][finite], losses[finite], [keys[j] for j in order]
        samples = exposure.sum(axis=1)
        self._curves = dict.fromkeys(keys, (samples, losses))
        if len(losses) < 3:
            self._fitted = None
            return
        steps = np.diff(exposure, axis=0, prepend=0.0)
        clock = self._clock(end)
        pace = np.diff(self._paced(clock, samples), prepend=0.0) / np.maximum(steps.sum(axis=1), 1e-300)
        paced = np.cumsum(steps * pace[:, None], axis=0)
        self._solve(
            keys,
            paced,
            losses,
            np.zeros(len(losses), dtype=np.intp),
            np.repeat(paced[-1:], count, axis=0),
            np.full(count, samples[-1]),
            [clock] * count,
            np.zeros(count, dtype=np.intp),
        )

    def _clock(self, end: float, learning_rates: tuple[ArrayLike, ArrayLike] | None = None) -> Clock:
        """Returns the clock of a run that ends at ``end`` samples, since the start of training."""
        reported = None
        if learning_rates is not None:
            samples, rates = (np.asarray(values, dtype=float) for values in learning_rates)
            begin = self._head_start
            reported = schedule_clock(begin + samples, rates, end, averaged=self._averaged, begin=begin)
        return reported or partial(annealed, end=end)

    def _paced(self, clock: Clock, samples: ArrayLike) -> Array:
        """Returns equivalent samples at the full learning rate since the head start."""
        return clock(self._head_start + np.asarray(samples)) - clock(self._head_start)

    def _solve(
        self,
        keys: Sequence[Hashable],
        exposure: Array,
        losses: Array,
        track: NDArray[np.intp],
        last_exposure: Array,
        samples: Array,
        clocks: Sequence[Clock],
        continued: NDArray[np.intp],
    ) -> None:
        known = [self._prior.get(key, (0.0, RATE_STD)) for key in keys]
        fitted = fit_shared_curve(
            Tracks(exposure, losses, track, max(float(clock(self._head_start)) for clock in clocks)),
            np.array([mean for mean, _ in known]),
            np.array([std for _, std in known]),
        )
        index, reports = {key: j for j, key in enumerate(keys)}, int(np.bincount(track).max())
        self._fitted = _Fit(fitted, index, last_exposure, samples, clocks, continued, reports)

    def forecast(self, key: Hashable, at: float) -> Forecast:
        samples, losses = self._curves[key]
        fitted = self._fitted
        if fitted is None or key not in fitted.index:
            return last_value(samples, losses, at)
        fit, j = fitted.curve, fitted.index[key]
        now, then, by_rates = self._progress(fitted, np.array([j]), np.array([at]))
        (value, _), slope = curve(fit.shared, np.append(then, fit.frontier))
        gradient = np.concatenate([slope[0, :SHARED], slope[0, SHARED] * by_rates[0]])
        ahead, unseen = (math.log(max(float(then[0]) / since, 1.0)) for since in (float(now[0]), fit.frontier))
        variance = float(gradient @ fit.covariance @ gradient) + fit.noise**2
        variance += float(_deviation(fitted, np.array([j]), slope[:1, SHARED], now, then)[0])
        variance += _TREND * fit.walk.step * ahead**2
        variance += ((_MISFIT[0] + _MISFIT[1] * unseen) * unseen * float(slope[1, SHARED])) ** 2
        variance *= 1.0 + _FEW / max(fitted.reports - 2, 1)
        mean = fit.loss_low + fit.loss_range * float(value + fit.walk.level[fitted.track[j]])
        if not math.isfinite(variance) or not math.isfinite(mean):  # overflow, far beyond the last report
            return last_value(samples, losses, at)
        # Whatever the curve leaves open: a loss changes by about as much as it has, or as is forecast.
        most = max(fit.loss_range, abs(mean - float(losses[-1])))
        return Forecast(mean, min(fit.loss_range * math.sqrt(variance), most))

    def rates(self) -> dict[Hashable, tuple[float, float]]:
        """Returns ``{key: (log efficiency, std)}``, whose efficiencies sum to zero. Empty curves are left out."""
        if self._fitted is None:
            return {}
        fit = self._fitted.curve
        std = np.sqrt(np.diag(fit.covariance)[SHARED:])
        return {key: (float(fit.log_rates[j]), float(std[j])) for key, j in self._fitted.index.items()}

    def probability_best(
        self, at: Mapping[Hashable, float], tie_break: TieBreak | None = None
    ) -> dict[Hashable, float]:
        """See the base class.

        The uncertainty of the curve is common to all candidates and left out.
        """
        fitted = self._fitted
        if fitted is None or any(key not in fitted.index for key in at):
            return super().probability_best(at, tie_break)
        fit, chosen = fitted.curve, np.array([fitted.index[key] for key in at], dtype=np.intp)
        now, then, by_rates = self._progress(fitted, chosen, np.array(list(at.values()), dtype=float))
        value, derivatives = curve(fit.shared, then)
        slope = derivatives[:, SHARED]
        by_rates = by_rates * slope[:, None]
        covariance = by_rates @ fit.covariance[SHARED:, SHARED:] @ by_rates.T
        covariance += np.diag(_deviation(fitted, chosen, slope, now, then))
        if tie_break is not None:
            tie_break = replace(tie_break, tolerance=tie_break.tolerance / fit.loss_range)
        return win_probabilities(tuple(at), value + fit.walk.level[fitted.track[chosen]], covariance, tie_break)

    def _progress(self, fitted: _Fit, chosen: NDArray[np.intp], at: Array) -> tuple[Array, Array, Array]:
        """Returns the progress of the candidates ``chosen`` [m].

        Returns:
            Scaled progress now [m] and at ``at`` samples [m], and the derivative of the logarithm of the latter with
            respect to the log efficiencies [m, K].
        """
        fit, last_exposure = fitted.curve, fitted.last_exposure[chosen]
        rates = np.exp(fit.log_rates) / fit.sample_scale
        part = last_exposure * rates
        now = np.maximum(part.sum(axis=1), 1e-12)
        rows = np.arange(len(chosen))
        paced = [
            clock(self._head_start + s) - clock(self._head_start + seen)
            for s, seen, clock in zip(at, fitted.samples[chosen], [fitted.clocks[j] for j in chosen], strict=True)
        ]
        part[rows, chosen] += rates[chosen] * np.array(paced)
        then = np.maximum(part.sum(axis=1), 1e-12)
        return now, then, part / then[:, None]


def _deviation(fitted: _Fit, chosen: NDArray[np.intp], slope: Array, now: Array, then: Array) -> Array:
    """Returns the variances of the candidates' deviations from the shared curve at progress ``then`` [m]."""
    walk, ahead = fitted.curve.walk, np.log(np.maximum(then / now, 1.0))
    variance: Array = walk.variance[fitted.track[chosen]] + (walk.step + (_DRIFT * slope) ** 2) * ahead
    return variance
