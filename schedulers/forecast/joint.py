"""One shared curve, one progress rate per candidate.

    loss_j(s) = g(r_j s),   g(t) = a + b (t + t0)^-c,   geometric mean of the rates r_j = 1

All candidates train the same network on the same data, so they walk down one curve and differ in how fast they walk.
``r_j`` says what one sample is worth under candidate ``j``. Where the learning rate decays, ``s`` is replaced by the
samples at full pace that do the same (``annealing``). ``shared_curve`` holds the fit.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schedulers.forecast.base import Array, Curves, Ends, Forecast, Forecaster, clean, last_value, share_of_wins
from schedulers.forecast.schedule_clock import annealed
from schedulers.forecast.shared_curve import RATE_STD, SHARED, SharedCurve, Tracks, curve, fit_shared_curve

#: How far a log rate wanders as training goes on: standard deviation per unit of sqrt(ln(progress then / now)).
#: A rate measured early is not the rate for ever (gradient noise grows), and no fit of early points can know.
_DRIFT = 0.1
#: What the curve's form itself gets wrong: a standard deviation of (ln(progress then / now) / 2.6)^4 of the fall that
#: is forecast. Short extrapolations are good; from a twentieth of a run, warm-up included, nothing can be said of its
#: end. Chosen on CIFAR-10, checked on MNIST (benchmarks/).
_MISFIT_SCALE, _MISFIT_POWER = 2.6, 4


@dataclass(frozen=True)
class _Standing:
    """A fitted curve, and where each candidate would go on from."""

    curve: SharedCurve
    index: dict[Hashable, int]
    behind: Array  # [K, K]: the exposure, at full pace, of the network that candidate j would train on
    samples: Array  # [K]: that network's samples
    ends: Array  # [K]


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

    def fit(self, curves: Curves, ends: Ends | None = None) -> None:
        self._curves = clean(curves)
        usable = {key: kept for key, kept in self._curves.items() if len(kept[0]) >= 3}
        # The order of candidates must not matter, but the search's path, and in a flat valley its end, depends on it.
        keys = sorted(usable, key=lambda key: (usable[key][1][-1], float(usable[key][1].mean())))
        if not keys:
            self._standing = None
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
        """Learns from one run that trained under several candidates in turn.

        Afterwards ``forecast(key, at)`` is of this run going on under ``key`` until it has seen ``at`` samples.

        Args:
            keys: All candidates, K of them, also those that have not had a turn.
            exposure: Samples under each up to each report [n, K], since the head start.
            losses: [n].
            end: Samples at which the decay of the learning rate ends, the head start included; inf: it does not decay.
        """
        count = len(keys)
        order = sorted(range(count), key=lambda j: str(keys[j]))
        finite = np.isfinite(losses) & (exposure.sum(axis=1) > 0)
        exposure, losses, keys = exposure[:, order][finite], losses[finite], [keys[j] for j in order]
        samples = exposure.sum(axis=1)
        self._curves = dict.fromkeys(keys, (samples, losses))
        if len(losses) < 3:
            self._standing = None
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
        """Samples since the head start, at full pace."""
        begin = self._head_start
        return annealed(begin + samples, end) - annealed(begin, end)

    def _solve(
        self,
        keys: Sequence[Hashable],
        exposure: Array,
        losses: Array,
        track: NDArray[np.intp],
        behind: Array,
        samples: Array,
        ends: Array,
    ) -> None:
        known = [self._prior.get(key, (0.0, RATE_STD)) for key in keys]
        fitted = fit_shared_curve(
            Tracks(exposure, losses, track, float(annealed(self._head_start, float(ends.max())))),
            np.array([mean for mean, _ in known]),
            np.array([std for _, std in known]),
        )
        self._standing = _Standing(fitted, {key: j for j, key in enumerate(keys)}, behind, samples, ends)

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
        variance += (_misfit(now, then) * float(value_now - value)) ** 2
        if math.isnan(variance):  # so far beyond the last report that numbers overflow: nothing is known
            return last_value(samples, losses, at)
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

    def _progress(self, standing: _Standing, chosen: Array, at: Array) -> tuple[Array, Array, Array]:
        """Scaled progress now [m] and at ``at`` samples [m], and the derivative of the latter's logarithm by the
        log rates [m, K], for the candidates ``chosen`` [m]."""
        fit, behind = standing.curve, standing.behind[chosen]
        rates = np.exp(fit.log_rates) / fit.sample_scale
        part = behind * rates
        now = part.sum(axis=1)
        rows = np.arange(len(chosen))
        paced = [
            self._paced(s, end) - self._paced(seen, end)
            for s, seen, end in zip(at, standing.samples[chosen], standing.ends[chosen], strict=True)
        ]
        part[rows, chosen] += rates[chosen] * np.array(paced)
        then = np.maximum(part.sum(axis=1), 1e-12)
        return now, then, part / then[:, None]


def _misfit(now: Array, then: Array) -> float:
    return float((math.log(max(float(then[0] / now[0]), 1.0)) / _MISFIT_SCALE) ** _MISFIT_POWER)


def _drift(now: Array, then: Array) -> Array:
    return _DRIFT**2 * np.log(np.maximum(then / now, 1.0))
