"""The command ``adaptive-ray plan``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Column, Table

from adaptive_ray.config.plan import Plan
from adaptive_ray.experiment.earlier_throughputs import earlier_throughputs
from adaptive_ray.experiment.experiment import Experiment
from adaptive_ray.ray_cluster.layout import Layout
from adaptive_ray.report.terminal import print_lines


def print_plan(console: Console, experiment: Experiment) -> None:
    """Prints what a run would do and what it would cost, and its workers unless they depend on a cluster.

    Raises:
        UserError: The batch sizes follow from clusters that have not been counted yet.
    """
    print_lines(console, experiment.data.summary)
    plan, races = experiment.plan, len(experiment.plan.trials) > 1
    layout = experiment.prepared.layout if experiment.prepared is not None else None
    if layout is not None:
        plan = plan.sharing(layout.slowdown)
    known = {
        key: each
        for key, each in earlier_throughputs(experiment.config, layout).items()
        if key in {candidate.key for candidate in plan.candidates}
    }
    console.print(_steps(experiment, plan, {key: throughput for key, (throughput, _) in known.items()}))
    accuracy = ""
    if plan.knn_every and experiment.data.labels is not None:
        accuracy = f", kNN accuracy every {plan.knn_every:,}"
    if plan.time is None:
        explored = f"race: {plan.window:,} samples per candidate" if races else "one run"
        if experiment.config.explore == "rotate":
            explored = f"one run: candidates rotate every {plan.turn:,} samples"
        lines = (
            f"{explored}, one report every {plan.evaluate_every:,} samples{accuracy}",
            f"budget: {plan.budget:,} samples ({plan.budget / plan.epoch:.3g} epochs)",
            f"cost: at most {1 + plan.explore_limit / plan.budget:.2f} x one full run "
            f"(grid search: {len(plan.candidates)} x)",
        )
    else:
        explored = f"race: {plan.time.window / 60:.3g} minutes per candidate" if races else "one run"
        whole = experiment.config.budget.minutes or 0.0
        others = whole - plan.time.budget / 60
        lines = (
            f"{explored}, {plan.time.evaluations} reports in that time",
            f"budget: {whole:.3g} minutes of training, including the race"
            + (f"; the other candidates use {others:.3g} of them" if others > 1e-9 else ""),
            "samples: each candidate's measured throughput times the time that is left",
        )
    console.print("\n".join(lines))
    runs = ", ".join(sorted({run for _, run in known.values()}))
    at_start = "measured when the candidates start" if races or plan.time is not None else "not measured"
    console.print(f"throughputs: {f'as measured in {runs}' if runs else f'{at_start}; none from earlier runs'}")
    if layout is not None:
        console.print(f"workers: {_workers(layout, len(plan.candidates)) if races else layout.winner.count}")


def _steps(experiment: Experiment, plan: Plan, throughputs: Mapping[str, float]) -> Table:
    """Returns a table of the candidates' steps and learning rates.

    With throughputs, also what a budget in minutes comes to in epochs, and the reverse.
    """
    data, optimizer = experiment.data, experiment.config.simclr.optimizer
    channels, height, width = data.shape
    races = len(plan.trials) > 1
    titles = ["batch size", *(("race steps", "total steps") if races else ("steps",)), "learning rate"]
    titles += ["images/s", "epochs", "minutes"] if throughputs else []
    table = Table(
        *(Column(title, justify="right") for title in titles),
        title=f"{data.name}: {plan.epoch:,} training images, {channels} x {height} x {width}",
    )
    about = ""
    if experiment.config.accumulation is not None:  # measured if the clusters are known, else a bound
        clusters = experiment.dataset_clusters
        about = "about " if clusters is not None and clusters.known else "at most "
    for candidate in plan.candidates:
        images = plan.updates[candidate]
        speed = throughputs.get(candidate.key)
        window, budget = float(plan.window), float(plan.budget)
        if plan.time is not None:
            window, budget = ((speed or math.nan) * seconds for seconds in (plan.time.window, plan.time.budget))
        counts = [window, budget] if races else [budget]
        steps = ["measured first" if math.isnan(n) else f"{about}{math.ceil(n / images):,}" for n in counts]
        row = [candidate.key, *steps, f"{optimizer.learning_rate_at(optimizer.warmup, images):.2g}"]
        if speed is not None:
            row += [f"{speed:,.0f}", f"{budget / plan.epoch:.3g}", f"{budget / speed / 60:.3g}"]
        table.add_row(*row)
    return table


def _workers(layout: Layout, candidates: int) -> str:
    race, winner, at_once = layout.race, layout.winner, layout.concurrent
    device = f"{race.gpus:.3g} GPU" if race.gpus else f"{race.cpus:.3g} CPU core{'' if race.cpus == 1 else 's'}"
    concurrent = f", {at_once} concurrent" if at_once < candidates else ""
    return f"{candidates} x {race.count} in the race ({device} per worker{concurrent}), {winner.count} for the winner"
