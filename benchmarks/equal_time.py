"""Which candidate a race with a budget in seconds chooses on recorded runs, and which is the best at equal time.

    python benchmarks/equal_time.py       # half a minute, without Ray

The runs in ``curves/`` get the throughputs of an H200 (see tolerance.py). The budget is the time in which the fastest
candidate reaches the end of its recording; the others are cut off earlier. This is an approximation, because the
learning rate of a real run would have decayed to zero there. *Annealed* losses correct this with the forecaster's
clock: they are those at which the recording has made as much progress as the shorter schedule would have.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table
from tolerance import HERE, SPEEDS, Values

from adaptive_ray.replay.policies import Policy, discard, race
from adaptive_ray.replay.recordings import Sweep, load_sweeps
from schedulers.forecast.schedule_clock import annealed

#: A choice counts as the best within this difference in reference loss; the goal is that this fraction of choices does.
CLOSE, GOAL = 0.02, 0.9
DEFAULT = "race, window of 10 % (default)"
POLICIES: dict[str, Policy] = {
    DEFAULT: partial(race, forecaster="joint"),
    "race, window of 20 %": partial(race, forecaster="joint", window=0.2),
    "race, window of 30 %": partial(race, forecaster="joint", window=0.3),
    "race, window of 20 %, no pruning": partial(race, forecaster="joint", window=0.2, prune_below=0.0),
    "lowest loss after 10 %": discard,
    "lowest loss after 20 %": partial(discard, fraction=0.2),
}


def timed(sweep: Sweep) -> Sweep:
    """Returns the sweep with the seconds that its runs would take at the throughputs of the table."""
    runs = (run.model_copy(update={"seconds": [at / SPEEDS[run.key] for at in run.samples]}) for run in sweep.runs)
    return replace(sweep, runs=tuple(runs))


def annealed_losses(sweep: Sweep) -> Values:
    """Returns the losses at the end of the budget in seconds, if every candidate's schedule ended there."""
    losses = {}
    for run in sweep.runs:
        end = run.throughput * sweep.budget("seconds")
        progress = annealed(run.samples, run.samples[-1])
        losses[run.key] = float(np.interp(annealed(end, end), progress, run.reference_loss))
    return losses


def main() -> None:
    sweeps, console = [timed(sweep) for sweep in load_sweeps(HERE / "curves")], Console(width=130)
    readings = {"cut off": [sweep.final_losses("seconds") for sweep in sweeps]}
    readings["annealed"] = [annealed_losses(sweep) for sweep in sweeps]
    choices = {name: [policy(sweep, "seconds").chosen for sweep in sweeps] for name, policy in POLICIES.items()}
    choices |= {f"always {key}": [key] * len(sweeps) for key in ("64", "128", "256")}
    regrets = {
        (name, reading): [losses[key] - min(losses.values()) for losses, key in zip(ends, keys, strict=True)]
        for name, keys in choices.items()
        for reading, ends in readings.items()
    }
    single = Table(title=f"{DEFAULT}: the best candidate at equal time, and the regret in reference loss")
    summary = Table(
        title=f"Choices within {CLOSE} of the best, of {len(sweeps)}; goal: {math.ceil(GOAL * len(sweeps))}"
    )
    for title in ("sweep", "choice", *(name for each in readings for name in (f"best, {each}", "regret"))):
        single.add_column(title, justify="left" if title == "sweep" else "right")
    for title in ("policy", *(name for each in readings for name in (each, "mean regret", "worst"))):
        summary.add_column(title, justify="left" if title == "policy" else "right")
    for index, sweep in enumerate(sweeps):
        row = [f"{sweep.dataset}, {sweep.learning_rate_rule}, seed {sweep.seed}", choices[DEFAULT][index]]
        for reading, ends in readings.items():
            row += [min(ends[index], key=ends[index].__getitem__), f"{regrets[DEFAULT, reading][index]:.3f}"]
        single.add_row(*row)
    for name in choices:
        row = [name]
        for reading in readings:
            found = regrets[name, reading]
            close = sum(regret <= CLOSE for regret in found)
            row += [f"{close}", f"{np.mean(found):.3f}", f"{max(found):.3f}"]
        summary.add_row(*row)
    console.print(single, summary)


if __name__ == "__main__":
    main()
