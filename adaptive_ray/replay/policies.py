"""Ways to find a batch size, each replayed on a recorded sweep: what it chooses, and what it spends on every candidate.

A policy sees what it would have seen in a run and nothing else: reports up to the moment at which it decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from adaptive_ray.replay.recordings import Axis, Sweep
from schedulers import PREDICTORS, Race, State
from schedulers.race import PRUNE_BELOW

#: Share of the budget that a race's candidates, or those that are compared once, may spend.
WINDOW = 0.1


@dataclass(frozen=True)
class Outcome:
    """A policy's choice on one sweep.

    Args:
        chosen: The candidate's key.
        reports: How many reports of each candidate were bought; the chosen one's are all, for it is trained to its end.
        milliseconds: Mean time of a decision.
    """

    chosen: str
    reports: dict[str, int]
    milliseconds: float


Policy = Callable[[Sweep, Axis], Outcome]


def race(
    sweep: Sweep, axis: Axis, *, predictor: str, prune_below: float = PRUNE_BELOW, window: float = WINDOW
) -> Outcome:
    """A race of this project: forecasts after every report, hopeless candidates stopped at once."""
    budget = sweep.budget(axis)
    series = Race(
        sweep.by_key,
        budget=budget,
        window=window * budget,
        axis=axis,
        prune_below=prune_below,
        forecaster=PREDICTORS[predictor](),
    )
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


def discard(sweep: Sweep, axis: Axis, *, share: float = WINDOW) -> Outcome:
    """Everybody trains for a constant share of the budget; the lowest loss then continues (Egele et al. 2024)."""
    until = share * sweep.budget(axis)
    # The first report at or after that point: nobody can be compared before it has said anything.
    reports = {key: int(np.sum(run.time(axis) < until)) + 1 for key, run in sweep.by_key.items()}
    started = time.perf_counter()
    chosen = min(reports, key=lambda key: sweep.by_key[key].reference_loss[reports[key] - 1])
    spent = 1000 * (time.perf_counter() - started)
    return Outcome(chosen, _trained_to_the_end(reports, chosen, sweep, axis), spent)


def random_choice(sweep: Sweep, axis: Axis) -> Outcome:
    """One candidate, drawn by the sweep's seed, data set and rule; nothing is explored."""
    name = f"{sweep.dataset}/{sweep.learning_rate_rule}".encode()
    drawn = np.random.default_rng([sweep.seed, *name]).integers(len(sweep.runs))
    chosen = sweep.runs[int(drawn)].key
    return Outcome(chosen, _trained_to_the_end(dict.fromkeys(sweep.by_key, 0), chosen, sweep, axis), 0.0)


def full_sweep(sweep: Sweep, axis: Axis) -> Outcome:
    """Everybody trains to the end; the lowest reference loss wins."""
    losses = sweep.final_losses(axis)
    everything = {key: _until(sweep, axis, key, sweep.budget(axis)) for key in losses}
    return Outcome(min(losses, key=losses.__getitem__), everything, 0.0)


def ray_scheduler(sweep: Sweep, axis: Axis, *, name: str) -> Outcome:
    """A scheduler of Ray Tune's with its own defaults, for a run of 100 (percent of the budget).

    The choice is ``ResultGrid.get_best_result``'s: the lowest last loss of all trials. If that trial was stopped it is
    trained to its end afterwards.
    """
    from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, MedianStoppingRule

    from adaptive_ray.replay.playback import METRIC, TIME, WHOLE, Playback

    common = {"time_attr": TIME, "metric": METRIC, "mode": "min"}
    scheduler = {
        "asha": lambda: ASHAScheduler(**common, max_t=int(WHOLE)),
        "hyperband": lambda: HyperBandScheduler(**common, max_t=int(WHOLE)),
        # Its own grace is 60 seconds: here, what the other policies may spend before they decide.
        "median_stopping": lambda: MedianStoppingRule(**common, grace_period=WINDOW * WHOLE),
    }[name]()
    playback = Playback(sweep, axis, scheduler)
    playback.run()
    seen = {key: count for key, count in playback.reported.items() if count}
    chosen = min(seen, key=lambda key: sweep.by_key[key].reference_loss[seen[key] - 1])
    reports = _trained_to_the_end(dict(playback.reported), chosen, sweep, axis)
    return Outcome(chosen, reports, 1000 * playback.seconds / max(playback.calls, 1))


#: ``default`` is what an experiment does unless told otherwise (``RaceSettings``).
POLICIES: dict[str, Policy] = {
    "default": partial(race, predictor="joint"),
    "joint": partial(race, predictor="joint", prune_below=0.0),
    "per_curve": partial(race, predictor="per_curve", prune_below=0.0),
    "last_value": partial(race, predictor="last_value", prune_below=0.0),
    "discard": discard,
    "asha": partial(ray_scheduler, name="asha"),
    "hyperband": partial(ray_scheduler, name="hyperband"),
    "median_stopping": partial(ray_scheduler, name="median_stopping"),
    "random": random_choice,
    "sweep": full_sweep,
}


def _until(sweep: Sweep, axis: Axis, key: str, until: float) -> int:
    """Reports of a candidate up to a point of the axis."""
    return int(np.sum(sweep.by_key[key].time(axis) <= until))


def _trained_to_the_end(reports: dict[str, int], chosen: str, sweep: Sweep, axis: Axis) -> dict[str, int]:
    return {**reports, chosen: _until(sweep, axis, chosen, sweep.budget(axis))}
