"""Scores policies on recorded sweeps: regret, cost, and quality of the forecasts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from scipy.stats import norm, spearmanr

from adaptive_ray.errors import UserError
from adaptive_ray.replay.hardware import RECORDED
from adaptive_ray.replay.policies import POLICIES, VARIANTS, Outcome, Policy
from adaptive_ray.replay.recordings import Axis, Sweep
from schedulers import FORECASTERS

#: Observed fractions of a run at which forecasts are scored.
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
#: Central intervals whose coverage is computed.
LEVELS = (0.5, 0.8, 0.95)

#: Draws of a bootstrap interval.
_BOOTSTRAPS = 1000

Row = dict[str, Any]

_EVERY = POLICIES | VARIANTS


def known_policies(names: Sequence[str]) -> dict[str, Policy]:
    """Returns the named policies; without any ``POLICIES``, and for ``all`` their variants as well.

    Raises:
        UserError: A name is unknown.
    """
    for name in names:
        if name not in (*_EVERY, "all"):
            raise UserError(f"--policy {name}: unknown; use {', '.join(POLICIES)}, or all for their variants as well")
    return _EVERY if "all" in names else {name: _EVERY[name] for name in names or POLICIES}


def replay(sweeps: Sequence[Sweep], policies: Mapping[str, Policy], axis: Axis) -> list[Row]:
    """Returns a row per policy and sweep.

    Regrets are the difference between the best candidate and the chosen one, in accuracy and in reference loss, at the
    end of the budget: after equal samples, or after equal seconds. ``regret`` is None if that accuracy is unknown.
    ``cost`` is in units of full runs along ``axis``; ``cost_samples`` and ``cost_seconds`` along either.

    Raises:
        UserError: A candidate has no report within the budget.
    """
    sweeps = budgeted(sweeps, axis)
    for sweep in sweeps:
        sweep.check(axis)
    return [_row(name, policy(sweep, axis), sweep, axis) for sweep in sweeps for name, policy in policies.items()]


def budgeted(sweeps: Sequence[Sweep], axis: Axis) -> list[Sweep]:
    """Returns the sweeps with the reports that they would have with a budget in units of ``axis``."""
    return [sweep.at_equal_time() if axis == "seconds" and sweep.hardware != RECORDED else sweep for sweep in sweeps]


def _row(policy: str, outcome: Outcome, sweep: Sweep, axis: Axis) -> Row:
    losses, chosen, accuracies = sweep.final_losses(axis), sweep.by_key[outcome.chosen], sweep.accuracies(axis)
    costs = {unit: _spent(outcome, sweep, axis, unit) for unit in ("samples", "seconds")}
    return {
        "policy": policy,
        "scenario": sweep.scenario,
        "dataset": sweep.dataset,
        "learning_rate_rule": sweep.learning_rate_rule,
        "seed": sweep.seed,
        "unit": axis,
        "axis": axis,
        "hardware": sweep.hardware,
        "chosen_batch_size": chosen.batch_size,
        "chosen_accumulation": chosen.accumulation,
        "regret": None if accuracies is None else max(accuracies.values()) - accuracies[outcome.chosen],
        "reference_loss_regret": losses[outcome.chosen] - min(losses.values()),
        "rank_correlation": _rank_correlation(outcome, sweep, losses),
        "cost": costs[axis],
        "cost_samples": costs["samples"],
        "cost_seconds": costs["seconds"],
        "milliseconds_per_decision": outcome.milliseconds,
    }


def _spent(outcome: Outcome, sweep: Sweep, axis: Axis, unit: Axis) -> float:
    """Returns the total cost of all candidates in units of a full run (mean over the candidates)."""
    ends = [sweep.by_key[key].time(unit)[count - 1] for key, count in sweep.counts(axis).items()]
    spent = sum(sweep.by_key[key].time(unit)[count - 1] for key, count in outcome.reports.items() if count)
    return float(spent / np.mean(ends))


def _rank_correlation(outcome: Outcome, sweep: Sweep, losses: dict[str, float]) -> float | None:
    """Returns Spearman's correlation between the last observed and the final losses; None with fewer than two.

    The chosen candidate is ranked first.
    """
    seen = {key: count for key, count in outcome.reports.items() if count}
    if len(seen) < 2:
        return None
    last = {key: sweep.by_key[key].reference_loss[count - 1] for key, count in seen.items()}
    last[outcome.chosen] = -math.inf
    ranks = np.argsort(np.argsort(list(last.values())))
    correlation = float(spearmanr(ranks, [losses[key] for key in last]).statistic)
    return correlation if math.isfinite(correlation) else None


def forecast_rows(sweeps: Sequence[Sweep]) -> list[Row]:
    """Returns mean absolute error and interval coverage per forecaster and observed fraction of the run."""
    rows = []
    for name in FORECASTERS:
        for fraction in FRACTIONS:
            errors, scores = [], []
            for sweep in sweeps:
                budget, forecaster = sweep.budget("samples"), FORECASTERS[name]()
                known = {run.key: run.count("samples", fraction * budget) for run in sweep.runs}
                forecaster.fit(
                    {r.key: (r.samples[: known[r.key]], r.reference_loss[: known[r.key]]) for r in sweep.runs},
                    dict.fromkeys(known, budget),
                    {
                        r.key: (r.samples[: known[r.key]], r.learning_rate[: known[r.key]])
                        for r in sweep.runs
                        if r.learning_rate
                    },
                )
                for run in sweep.runs:
                    if known[run.key]:
                        forecast, actual = forecaster.forecast(run.key, budget), run.loss_at("samples", budget)
                        errors.append(abs(forecast.mean - actual))
                        scores.append((actual - forecast.mean) / forecast.std)
            coverage = {
                f"coverage_{level:.0%}": float(np.mean(np.abs(scores) <= norm.ppf(0.5 + level / 2))) for level in LEVELS
            }
            rows.append({"forecaster": name, "share": fraction, "error": float(np.mean(errors)), **coverage})
    return rows


def seed_noise(sweeps: Sequence[Sweep], axis: Axis) -> tuple[float, float]:
    """Returns the mean standard deviation over seeds of accuracy and final loss; nan if unknown."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for sweep in sweeps:
        losses, accuracies = sweep.final_losses(axis), sweep.accuracies(axis) or {}
        for key, loss in losses.items():
            groups.setdefault((sweep.scenario, key), []).append((accuracies.get(key, math.nan), loss))
    spreads = np.array([np.std(group, axis=0, ddof=1) for group in groups.values() if len(group) > 1]).reshape(-1, 2)
    known = [column[np.isfinite(column)] for column in spreads.T]
    accuracy, loss = (float(np.mean(column)) if len(column) else math.nan for column in known)
    return accuracy, loss


class Score(NamedTuple):
    """A column of a policy: mean over sweeps, its 80 % bootstrap interval, and the mean of the worst scenario."""

    mean: float
    low: float
    high: float
    worst: float


def score(rows: Sequence[Row], column: str) -> Score | None:
    """Returns the scores of one policy's rows; None if no row has a value."""
    known = [row for row in rows if row[column] is not None]
    if not known:
        return None
    values = np.array([row[column] for row in known])
    scenarios = [f"{row['scenario']} {row['hardware']}" for row in known]
    worst = max(values[[name == each for name in scenarios]].mean() for each in set(scenarios))
    draws = np.random.default_rng(0).integers(len(values), size=(_BOOTSTRAPS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.1, 0.9))
    return Score(float(values.mean()), float(low), float(high), float(worst))


#: Columns of regrets, with the factor and the number of digits with which they are shown.
REGRETS = {"regret": (100.0, 2), "reference_loss_regret": (1.0, 3)}


def regret_cells(rows: Sequence[Row], column: str) -> tuple[str, str]:
    """Returns the mean regret of one policy with its interval, and its worst scenario; empty if unknown."""
    found, (scale, digits) = score(rows, column), REGRETS[column]
    if found is None:
        return "", ""
    mean, low, high, worst = (f"{scale * value:.{digits}f}" for value in found)
    return f"{mean} [{low}, {high}]", worst


def policy_table(rows: Sequence[Row], sweeps: Sequence[Sweep], axis: Axis) -> Table:
    """Returns the mean of each policy over all sweeps, with bootstrap intervals, and its worst scenario."""
    accuracy, loss = seed_noise(budgeted(sweeps, axis), axis)
    candidates = sorted({len(sweep.runs) for sweep in sweeps})
    sizes = f"{candidates[0]} to {candidates[-1]}" if len(candidates) > 1 else f"{candidates[0]}"
    hardware = ", ".join(sorted({sweep.hardware for sweep in sweeps}))
    table = Table(
        title=f"{len(sweeps)} sweeps of {sizes} candidates, budget in {axis}; seconds: {hardware}",
        caption="cost: in full runs. Regret: best candidate minus the chosen one at the end of the budget. [80 % "
        f"bootstrap interval over sweeps]. Standard deviation over seeds: {100 * accuracy:.2f} points, loss {loss:.4f}",
    )
    for title in (
        "policy",
        "samples",
        "seconds",
        "regret, points",
        "worst scenario",
        "loss regret",
        "worst scenario",
        "ms",
    ):
        table.add_column(title, justify="left" if title == "policy" else "right")
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        cells = [f"{np.mean([row[column] for row in own]):.2f}" for column in ("cost_samples", "cost_seconds")]
        for column in REGRETS:
            cells += regret_cells(own, column)
        table.add_row(policy, *cells, f"{np.mean([row['milliseconds_per_decision'] for row in own]):.2f}")
    return table


def unknown_accuracies(sweeps: Sequence[Sweep], axis: Axis) -> str:
    """Returns a sentence about the sweeps whose regret in points is unknown; empty without any."""
    unknown = [sweep for sweep in sweeps if sweep.accuracies(axis) is None]
    if not unknown:
        return ""
    reason = (
        "have no accuracy during training (knn_samples, knn_accuracy), so it is not known at equal time"
        if axis == "seconds"
        else "have no accuracy that all candidates measured in the same way"
    )
    return f"regret in points is empty for {len(unknown)} of {len(sweeps)} sweeps: their recordings {reason}"


def forecast_table(rows: Sequence[Row]) -> Table:
    """Returns errors and coverage by the observed fraction of the run."""
    table = Table(title="Forecasts of the final reference loss", caption="coverage of the 50 / 80 / 95 % intervals, %")
    table.add_column("forecaster")
    for fraction in FRACTIONS:
        table.add_column(f"error at {fraction:.0%}", justify="right")
        table.add_column("coverage", justify="right")
    for name in dict.fromkeys(row["forecaster"] for row in rows):
        cells = []
        for row in (row for row in rows if row["forecaster"] == name):
            cells.append(f"{row['error']:.3f}")
            cells.append(" / ".join(f"{100 * row[f'coverage_{level:.0%}']:.0f}" for level in LEVELS))
        table.add_row(name, *cells)
    return table
