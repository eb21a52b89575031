"""Policies that choose a batch size, replayed on recorded sweeps.

A policy sees only the reports up to the point at which it decides, as in a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from adaptive_ray.replay.recordings import Axis, Sweep
from schedulers import FORECASTERS, Race, State
from schedulers.race import PRUNE_BELOW, Rule

#: Fraction of the budget that each candidate may spend before the choice.
WINDOW = 0.1


@dataclass(frozen=True)
class Outcome:
    """The choice of a policy on one sweep."""

    chosen: str  # key of the candidate
    reports: dict[str, int]  # number of reports of each candidate; the chosen one is trained to the end
    milliseconds: float  # mean time of a decision


Policy = Callable[[Sweep, Axis], Outcome]


def race(
    sweep: Sweep,
    axis: Axis,
    *,
    rule: Rule = "halving",
    forecaster: str = "last_value",  # not used by halving, and the fastest
    prune_below: float = PRUNE_BELOW,
    tolerance: float | None = None,
    window: float = WINDOW,
) -> Outcome:
    """Runs a ``Race`` whose throughputs were measured."""
    budget = sweep.budget(axis)
    series = Race(
        sweep.by_key,
        budget=budget,
        window=window * budget,
        axis=axis,
        rule=rule,
        prune_below=prune_below,
        tolerance=tolerance,
        forecaster=FORECASTERS[forecaster](),
    )
    for key, run in sweep.by_key.items():
        series.measure(key, run.throughput)
    reports = dict.fromkeys(sweep.by_key, 0)
    order = sorted((t, key) for key, run in sweep.by_key.items() for t in run.time(axis).tolist())
    seconds, calls = 0.0, 0
    for _, key in order:
        if series.over:
            break
        if series.state(key) is not State.RACING:
            continue
        run, index = sweep.by_key[key], reports[key]
        started = time.perf_counter()
        rate = run.learning_rate[index] if run.learning_rate else math.nan
        series.report(key, run.samples[index], run.reference_loss[index], run.seconds[index], rate)
        seconds, calls = seconds + time.perf_counter() - started, calls + 1
        reports[key] = index + 1
    winner = str(series.winner)
    return Outcome(winner, _trained_to_the_end(reports, winner, sweep, axis), 1000 * seconds / max(calls, 1))


def fixed(sweep: Sweep, axis: Axis, *, batch_size: float) -> Outcome:
    """Chooses the recorded batch size that is nearest to a fixed one; with inf, the largest."""
    sizes = {run.key: run.batch_size for run in sweep.runs}
    chosen = min(sizes, key=lambda key: (abs(math.log(sizes[key] / min(batch_size, max(sizes.values())))), key))
    return Outcome(chosen, _trained_to_the_end(dict.fromkeys(sweep.by_key, 0), chosen, sweep, axis), 0.0)


def random_choice(sweep: Sweep, axis: Axis) -> Outcome:
    """Chooses at random, seeded by the sweep's seed, data set and rule."""
    name = f"{sweep.dataset}/{sweep.learning_rate_rule}".encode()
    drawn = np.random.default_rng([sweep.seed, *name]).integers(len(sweep.runs))
    chosen = sweep.runs[int(drawn)].key
    return Outcome(chosen, _trained_to_the_end(dict.fromkeys(sweep.by_key, 0), chosen, sweep, axis), 0.0)


def full_sweep(sweep: Sweep, axis: Axis) -> Outcome:
    """Trains all candidates to the end; the lowest reference loss wins."""
    losses = sweep.final_losses(axis)
    return Outcome(min(losses, key=losses.__getitem__), sweep.counts(axis), 0.0)


def ray_scheduler(sweep: Sweep, axis: Axis, *, name: str, **settings: float) -> Outcome:
    """Runs a scheduler of Ray Tune for a run of length 100 (percent of the budget).

    Chooses the lowest last loss of all trials, as ``ResultGrid.get_best_result`` does. If that trial was stopped, it is
    trained to the end afterwards.
    """
    from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, MedianStoppingRule

    from adaptive_ray.replay.playback import METRIC, TIME, WHOLE, Playback

    common: dict[str, Any] = {"time_attr": TIME, "metric": METRIC, "mode": "min", **settings}
    scheduler = {
        "asha": lambda: ASHAScheduler(**common, max_t=int(WHOLE)),
        "hyperband": lambda: HyperBandScheduler(**common, max_t=int(WHOLE)),
        # The default is 60 seconds; here, the window of the other policies.
        "median_stopping": lambda: MedianStoppingRule(**common, grace_period=WINDOW * WHOLE),
    }[name]()
    playback = Playback(sweep, axis, scheduler)
    playback.run()
    seen = {key: count for key, count in playback.reported.items() if count}
    chosen = min(seen, key=lambda key: sweep.by_key[key].reference_loss[seen[key] - 1])
    reports = _trained_to_the_end(dict(playback.reported), chosen, sweep, axis)
    return Outcome(chosen, reports, 1000 * playback.seconds / max(playback.calls, 1))


forecast = partial(race, rule="forecast", forecaster="joint")
#: The lowest loss after a fraction of the budget (Egele et al. 2024).
discard = partial(race, prune_below=0.0, tolerance=0.0)

#: ``default`` has the defaults of an experiment (``RaceSettings``).
POLICIES: dict[str, Policy] = {
    "default": race,
    "default_without_ties": partial(race, tolerance=0.0),
    "forecast": forecast,
    "joint": partial(forecast, prune_below=0.0),
    "per_curve": partial(forecast, forecaster="per_curve", prune_below=0.0),
    "last_value": partial(forecast, forecaster="last_value", prune_below=0.0),
    "discard": discard,
    "asha": partial(ray_scheduler, name="asha"),
    "hyperband": partial(ray_scheduler, name="hyperband"),
    "median_stopping": partial(ray_scheduler, name="median_stopping"),
    "always_64": partial(fixed, batch_size=64),
    "always_256": partial(fixed, batch_size=256),
    "largest": partial(fixed, batch_size=math.inf),
    "random": random_choice,
    "sweep": full_sweep,
}

#: Variants, replayed with ``--policy all``.
VARIANTS: dict[str, Policy] = {
    **{f"always_{size}": partial(fixed, batch_size=size) for size in (32, 128, 512, 1024, 2048)},
    **{f"default_{percent}%": partial(race, window=percent / 100) for percent in (4, 6, 8, 15, 20)},
    **{f"forecast_{percent}%": partial(forecast, window=percent / 100) for percent in (5, 20)},
    **{f"discard_{percent}%": partial(discard, window=percent / 100) for percent in (1, 2, 3, 4, 6, 8, 15, 20)},
    **{
        f"asha_{grace}%_{reduction}": partial(
            ray_scheduler, name="asha", grace_period=grace, reduction_factor=reduction
        )
        for grace in (1, 2, 4, 6, 10)
        for reduction in (2, 3, 4)
    },
}


def _trained_to_the_end(reports: dict[str, int], chosen: str, sweep: Sweep, axis: Axis) -> dict[str, int]:
    return {**reports, chosen: sweep.counts(axis)[chosen]}
