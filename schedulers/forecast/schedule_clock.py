"""The clock of a run whose learning rate changes: equivalent samples at the full learning rate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from schedulers.forecast.base import Array

#: Converts samples to equivalent samples at the full learning rate.
Clock = Callable[[ArrayLike], Array]

#: Progress per sample of averaged weights: the relative learning rate to this power. Both powers were chosen on half of
#: the curves and checked on the others (benchmarks/public_curves.py).
_AVERAGED_POWER = 0.3
#: Raw weights: a relative learning rate p multiplies the progress by p to minus this power, because less noise is left.
_RAW_POWER = 0.4
#: It counts as at least this for raw weights: no recorded schedule ends lower.
_LEAST = 0.1
#: The clock never stands still.
_LEAST_PACE = 1e-3
#: Points of an extrapolated schedule.
_POINTS = 65


def annealed(samples: ArrayLike, end: float) -> Array:
    """Returns the number of samples at the full learning rate that make the same progress as ``samples``.

        u(s) = s - s^3 / (3 S^2),   that is, a relative progress per sample of 1 - (s / S)^2, with S = ``end``

    For averaged weights whose learning rate decays to zero, if it is not reported. The form was chosen out of five on
    CIFAR-10 and checked on MNIST (benchmarks/).

    Args:
        samples: At least 0.
        end: Samples at which the learning rate is zero; inf or nan: it is constant.
    """
    s: Array = np.asarray(samples, dtype=float)
    if not (np.isfinite(end) and end > 0):
        return s
    fraction = np.minimum(s / end, 1.0)
    paced: Array = np.minimum(s, end) * (1.0 - fraction * fraction / 3.0)
    return paced


def schedule_clock(samples: Array, rates: Array, end: float, *, averaged: bool, begin: float = 0.0) -> Clock | None:
    """Returns the clock of a learning rate that was reported.

    With p = rate / highest rate, averaged weights make a progress per sample of p^0.3. Raw weights make a progress of p
    during warm-up and of 1 afterwards, and a low rate reduces their noise, as much as p^-0.4 times the progress would.
    After the last report, the schedule is assumed to be the closest to the reports since the peak: constant, or cosine
    or linear decay to zero at ``end``.

    Args:
        samples: Samples of the reports, ascending. They may extend beyond the curve, if the schedule is known.
        rates: Learning rates [n].
        end: Samples at the end of the run; inf or nan: unknown, so that the rate remains constant.
        averaged: Whether the loss is that of averaged weights.
        begin: Samples at which the reports begin. If it is 0, a rate that rises is assumed to rise from 0.

    Returns:
        The clock; None if no rate is positive.
    """
    known = np.isfinite(samples) & np.isfinite(rates) & (rates >= 0) & (samples > 0)
    s, rate = samples[known], rates[known]
    if not len(s) or not rate.max() > 0:
        return None
    relative = rate / rate.max()
    peak = int(np.argmax(relative > 1 - 1e-3))
    if np.isfinite(end) and end > s[-1]:
        ahead = np.linspace(s[-1], end, _POINTS)[1:]
        s, relative = np.append(s, ahead), np.append(relative, _continued(s, relative, peak, ahead, end, begin))
    first = 0.0 if begin <= 0 and peak > 0 else relative[0]
    s, relative = np.insert(s, 0, min(begin, s[0])), np.insert(relative, 0, first)
    warm = np.arange(len(s)) <= peak + 1
    pace = relative**_AVERAGED_POWER if averaged else np.where(warm, relative, 1.0)
    pace = np.maximum(pace, _LEAST_PACE)
    progress = s[0] + np.append(0.0, np.cumsum(np.diff(s) * (pace[1:] + pace[:-1]) / 2))
    if not averaged:
        progress = np.maximum.accumulate(progress * np.where(warm, 1.0, np.maximum(relative, _LEAST) ** -_RAW_POWER))
    last = max(float((progress[-1] - progress[-2]) / max(s[-1] - s[-2], 1e-300)), 1e-6)

    def clock(at: ArrayLike) -> Array:
        x = np.asarray(at, dtype=float)
        read: Array = np.interp(x, s, progress) + last * np.maximum(x - s[-1], 0.0)
        return read

    return clock


def _continued(s: Array, relative: Array, peak: int, ahead: Array, end: float, begin: float) -> Array:
    """Returns relative rates at ``ahead``, by the schedule that is closest to those since the peak."""
    since, seen = s[peak:], relative[peak:]
    shapes: list[Callable[[Array], Array]] = [np.ones_like]
    for start in {float(s[peak]), 0.0 if begin > 0 else float(s[peak])}:
        if start < end:
            shapes += [
                lambda x, start=start: 1.0 - (x - start) / (end - start),  # type: ignore[misc]
                lambda x, start=start: 0.5 + 0.5 * np.cos(np.pi * (x - start) / (end - start)),  # type: ignore[misc]
            ]
    scaled = [(shape(since), shape(ahead)) for shape in shapes]
    errors = [float(np.abs(seen / seen[0] - fit / max(fit[0], 1e-12)).sum()) for fit, _ in scaled]
    fit, future = scaled[int(np.argmin(errors))]
    continued: Array = relative[-1] * np.maximum(future, 0.0) / max(float(fit[-1]), 1e-12)
    return continued
