"""Policies that choose a batch size, replayed on recorded sweeps.

A policy sees only the reports up to the point at which it decides, as in a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from adaptive_ray.replay.recordings import Axis, Sweep
from schedulers import FORECASTERS, Race, State
from schedulers.race import PRUNE_BELOW

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
    sweep: Sweep, axis: Axis, *, forecaster: str, prune_below: float = PRUNE_BELOW, window: float = WINDOW
) -> Outcome:
    """Runs a ``Race`` whose throughputs were measured."""
    budget = sweep.budget(axis)
    series = Race(
        sweep.by_key,
        budget=budget,
        window=window * budget,
        axis=axis,
        prune_below=prune_below,
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
        series.report(key, run.samples[index], run.reference_loss[index], run.seconds[index])
        seconds, calls = seconds + time.perf_counter() - started, calls + 1
        reports[key] = index + 1
    winner = str(series.winner)
    return Outcome(winner, _trained_to_the_end(reports, winner, sweep, axis), 1000 * seconds / max(calls, 1))


def discard(sweep: Sweep, axis: Axis, *, fraction: float = WINDOW) -> Outcome:
    """Trains all candidates for a fraction of the budget; the lowest loss continues (Egele et al. 2024)."""
    until = fraction * sweep.budget(axis)
    # The first report at or after that point.
    reports = {key: int(np.sum(run.time(axis) < until)) + 1 for key, run in sweep.by_key.items()}
    started = time.perf_counter()
    chosen = min(reports, key=lambda key: sweep.by_key[key].reference_loss[reports[key] - 1])
    spent = 1000 * (time.perf_counter() - started)
    return Outcome(chosen, _trained_to_the_end(reports, chosen, sweep, axis), spent)


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


def ray_scheduler(sweep: Sweep, axis: Axis, *, name: str) -> Outcome:
    """Runs a scheduler of Ray Tune with its defaults, for a run of length 100 (percent of the budget).

    Chooses the lowest last loss of all trials, as ``ResultGrid.get_best_result`` does. If that trial was stopped, it is
    trained to the end afterwards.
    """
    from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, MedianStoppingRule

    from adaptive_ray.replay.playback import METRIC, TIME, WHOLE, Playback

    common = {"time_attr": TIME, "metric": METRIC, "mode": "min"}
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


#: ``default`` has the defaults of an experiment (``RaceSettings``).
POLICIES: dict[str, Policy] = {
    "default": partial(race, forecaster="joint"),
    "joint": partial(race, forecaster="joint", prune_below=0.0),
    "per_curve": partial(race, forecaster="per_curve", prune_below=0.0),
    "last_value": partial(race, forecaster="last_value", prune_below=0.0),
    "discard": discard,
    "asha": partial(ray_scheduler, name="asha"),
    "hyperband": partial(ray_scheduler, name="hyperband"),
    "median_stopping": partial(ray_scheduler, name="median_stopping"),
    "random": random_choice,
    "sweep": full_sweep,
}


def _trained_to_the_end(reports: dict[str, int], chosen: str, sweep: Sweep, axis: Axis) -> dict[str, int]:
    return {**reports, chosen: sweep.counts(axis)[chosen]}
