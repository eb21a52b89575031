"""A joint model of all loss curves: one shared curve, and one statistical efficiency per candidate.

    loss_j(s) = g(r_j s),   g(t) = a + b (t + t0)^-c,   geometric mean of the efficiencies r_j = 1

All candidates train the same network on the same data, so their losses follow one curve at different speeds. The
statistical efficiency ``r_j`` (Pollux, OSDI 2021) is the progress per sample under candidate ``j``. If the learning
rate decays, ``s`` is replaced by the equivalent samples at the full learning rate (``schedule_clock``).
``shared_curve`` fits the model.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schedulers.forecast.base import (
    Array,
    Curves,
    Ends,
    Forecast,
    Forecaster,
    TieBreak,
    clean,
    last_value,
    win_probabilities,
)
from schedulers.forecast.schedule_clock import annealed
from schedulers.forecast.shared_curve import RATE_STD, SHARED, SharedCurve, Tracks, curve, fit_shared_curve

#: Drift of the log efficiency during training: standard deviation per unit of sqrt(ln(progress then / now)). Gradient
#: noise grows, so an efficiency that is measured early changes later.
_DRIFT = 0.1
#: Model error of the power law: a standard deviation of (ln(progress then / now) / 2.6)^4 of the forecast decrease. It
#: is small for short extrapolations; from a twentieth of a run, the end cannot be forecast. Chosen on CIFAR-10 and
#: checked on MNIST (benchmarks/).
_MISFIT_SCALE, _MISFIT_POWER = 2.6, 4


@dataclass(frozen=True)
class _Fit:
    """A fitted curve, and the point from which each candidate continues."""

    curve: SharedCurve
    index: dict[Hashable, int]
    last_exposure: Array  # [K, K]: equivalent samples of the network that candidate j continues, under each candidate
    samples: Array  # [K]: samples of that network
    ends: Array  # [K]


class JointForecaster(Forecaster):
    """Fits all curves jointly; the model is described above.

    Args:
        head_start: Samples that the candidates' common network had seen before the curves start.
        rates: Priors of the log efficiencies: ``{key: (mean, standard deviation)}``.
    """

    def __init__(self, head_start: float = 0.0, rates: Mapping[Any, tuple[float, float]] | None = None) -> None:
        self._head_start, self._prior = head_start, dict(rates or {})
        self._curves: dict[Hashable, tuple[Array, Array]] = {}
        self._fitted: _Fit | None = None

    def fit(self, curves: Curves, ends: Ends | None = None) -> None:
        self._curves = clean(curves)
        usable = {key: kept for key, kept in self._curves.items() if len(kept[0]) >= 3}
        # Sorted, because the result of the search depends slightly on the order of candidates.
        keys = sorted(usable, key=lambda key: (usable[key][1][-1], float(usable[key][1].mean())))
        if not keys:
            self._fitted = None
            return
        owner = np.repeat(np.arange(len(keys)), [len(usable[key][0]) for key in keys])
        exposure = np.zeros((len(owner), len(keys)))
        end = np.array([(ends or {}).get(key, math.inf) for key in keys])
        paced = [self._paced(usable[key][0], end[j]) for j, key in enumerate(keys)]
        exposure[np.arange(len(owner)), owner] = np.concatenate(paced)
        losses = np.concatenate([usable[key][1] for key in keys])
        samples = np.array([usable[key][0][-1] for key in keys])
        self._solve(keys, exposure, losses, owner, np.diag([u[-1] for u in paced]), samples, end)

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
        pace = np.diff(self._paced(samples, end), prepend=0.0) / np.maximum(steps.sum(axis=1), 1e-300)
        paced = np.cumsum(steps * pace[:, None], axis=0)
        self._solve(
            keys,
            paced,
            losses,
            np.zeros(len(losses), dtype=np.intp),
            np.repeat(paced[-1:], count, axis=0),
            np.full(count, samples[-1]),
            np.full(count, end),
        )

    def _paced(self, samples: Array, end: float) -> Array:
        """Returns equivalent samples at the full learning rate since the head start."""
        begin = self._head_start
        return annealed(begin + samples, end) - annealed(begin, end)

    def _solve(
        self,
        keys: Sequence[Hashable],
        exposure: Array,
        losses: Array,
        track: NDArray[np.intp],
        last_exposure: Array,
        samples: Array,
        ends: Array,
    ) -> None:
        known = [self._prior.get(key, (0.0, RATE_STD)) for key in keys]
        fitted = fit_shared_curve(
            Tracks(exposure, losses, track, float(annealed(self._head_start, float(ends.max())))),
            np.array([mean for mean, _ in known]),
            np.array([std for _, std in known]),
        )
        self._fitted = _Fit(fitted, {key: j for j, key in enumerate(keys)}, last_exposure, samples, ends)

    def forecast(self, key: Hashable, at: float) -> Forecast:
        samples, losses = self._curves[key]
        fitted = self._fitted
        if fitted is None or key not in fitted.index:
            return last_value(samples, losses, at)
        fit, j = fitted.curve, fitted.index[key]
        now, then, by_rates = self._progress(fitted, np.array([j]), np.array([at]))
        (value, value_now), slope = curve(fit.shared, np.concatenate([then, now]))
        gradient = np.concatenate([slope[0, :SHARED], slope[0, SHARED] * by_rates[0]])
        variance = float(gradient @ fit.covariance @ gradient) + fit.noise**2
        variance += float(slope[0, SHARED]) ** 2 * float(_drift(now, then)[0])
        variance += (_misfit(now, then) * float(value_now - value)) ** 2
        if math.isnan(variance):  # overflow, far beyond the last report
            return last_value(samples, losses, at)
        return Forecast(fit.loss_low + fit.loss_range * float(value), fit.loss_range * math.sqrt(variance))

    def rates(self) -> dict[Hashable, tuple[float, float]]:
        """Returns ``{key: (log efficiency, std)}``, which sum to zero. Curves too short to fit are left out."""
        if self._fitted is None:
            return {}
        fit = self._fitted.curve
        std = np.sqrt(np.diag(fit.covariance)[SHARED:])
        return {key: (float(fit.log_rates[j]), float(std[j])) for key, j in self._fitted.index.items()}

    def probability_best(
        self, at: Mapping[Hashable, float], tie_break: TieBreak | None = None
    ) -> dict[Hashable, float]:
        """See the base class. Computed from progress along the shared curve, which decreases.

        The uncertainty of the curve is common to all candidates and cancels out.
        """
        fitted = self._fitted
        if fitted is None or any(key not in fitted.index for key in at):
            return super().probability_best(at, tie_break)
        chosen = np.array([fitted.index[key] for key in at])
        now, then, by_rates = self._progress(fitted, chosen, np.array(list(at.values()), dtype=float))
        covariance = by_rates @ fitted.curve.covariance[SHARED:, SHARED:] @ by_rates.T + np.diag(_drift(now, then))
        if tie_break is not None:  # in units of log progress
            slope = fitted.curve.loss_range * float(curve(fitted.curve.shared, then.max(keepdims=True))[1][0, SHARED])
            tie_break = replace(tie_break, tolerance=tie_break.tolerance / max(abs(slope), 1e-12))
        return win_probabilities(tuple(at), -np.log(then), covariance, tie_break)

    def _progress(self, fitted: _Fit, chosen: Array, at: Array) -> tuple[Array, Array, Array]:
        """Returns the progress of the candidates ``chosen`` [m].

        Returns:
            Scaled progress now [m] and at ``at`` samples [m], and the derivative of the logarithm of the latter with
            respect to the log efficiencies [m, K].
        """
        fit, last_exposure = fitted.curve, fitted.last_exposure[chosen]
        rates = np.exp(fit.log_rates) / fit.sample_scale
        part = last_exposure * rates
        now = part.sum(axis=1)
        rows = np.arange(len(chosen))
        paced = [
            self._paced(s, end) - self._paced(seen, end)
            for s, seen, end in zip(at, fitted.samples[chosen], fitted.ends[chosen], strict=True)
        ]
        part[rows, chosen] += rates[chosen] * np.array(paced)
        then = np.maximum(part.sum(axis=1), 1e-12)
        return now, then, part / then[:, None]


def _misfit(now: Array, then: Array) -> float:
    return float((math.log(max(float(then[0] / now[0]), 1.0)) / _MISFIT_SCALE) ** _MISFIT_POWER)


def _drift(now: Array, then: Array) -> Array:
    return _DRIFT**2 * np.log(np.maximum(then / now, 1.0))
