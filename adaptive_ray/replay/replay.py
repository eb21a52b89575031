"""Scores policies on recorded sweeps: regret, cost, and quality of the forecasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import norm, spearmanr

from adaptive_ray.errors import UserError
from adaptive_ray.replay.policies import POLICIES, Outcome
from adaptive_ray.replay.recordings import Axis, Sweep
from schedulers import FORECASTERS

#: Observed fractions of a run at which forecasts are scored.
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
#: Central intervals whose coverage is computed.
LEVELS = (0.5, 0.8, 0.95)

Row = dict[str, Any]


def known_policies(names: Sequence[str]) -> list[str]:
    """Returns the given names; without any, those of all policies.

    Raises:
        UserError: A name is unknown.
    """
    for name in names:
        if name not in POLICIES:
            raise UserError(f"--policy {name}: unknown; use {', '.join(POLICIES)}")
    return list(names) or list(POLICIES)


def replay(sweeps: Sequence[Sweep], policies: Sequence[str], axis: Axis) -> list[Row]:
    """Returns a row per policy and sweep.

    Regrets are the difference between the best candidate and the chosen one. ``cost`` is in units of full runs along
    ``axis``; ``cost_samples`` and ``cost_seconds`` along either. With ``axis="seconds"`` the reference loss is taken at
    the end of the budget; the probe accuracy is always that of the whole recording.

    Raises:
        UserError: A candidate has no report within the budget.
    """
    for sweep in sweeps:
        sweep.check(axis)
    return [_row(name, POLICIES[name](sweep, axis), sweep, axis) for sweep in sweeps for name in policies]


def _row(policy: str, outcome: Outcome, sweep: Sweep, axis: Axis) -> Row:
    losses, chosen = sweep.final_losses(axis), sweep.by_key[outcome.chosen]
    costs = {unit: _spent(outcome, sweep, axis, unit) for unit in ("samples", "seconds")}
    return {
        "policy": policy,
        "dataset": sweep.dataset,
        "learning_rate_rule": sweep.learning_rate_rule,
        "seed": sweep.seed,
        "axis": axis,
        "chosen_batch_size": chosen.batch_size,
        "chosen_accumulation": chosen.accumulation,
        "regret": max(run.probe_accuracy for run in sweep.runs) - chosen.probe_accuracy,
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
    """Returns the mean standard deviation over seeds of probe accuracy and final loss; nan for one seed."""
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for sweep in sweeps:
        losses = sweep.final_losses(axis)
        for run in sweep.runs:
            group = groups.setdefault((sweep.dataset, sweep.learning_rate_rule, run.key), [])
            group.append((run.probe_accuracy, losses[run.key]))
    spreads = [np.std(group, axis=0, ddof=1) for group in groups.values() if len(group) > 1]
    accuracy, loss = np.mean(spreads, axis=0) if spreads else (math.nan, math.nan)
    return float(accuracy), float(loss)


def policy_table(rows: Sequence[Row], sweeps: Sequence[Sweep], axis: Axis) -> Table:
    """Returns the mean of each policy over all sweeps."""
    accuracy, loss = seed_noise(sweeps, axis)
    candidates = sorted({len(sweep.runs) for sweep in sweeps})
    table = Table(
        title=f"{len(sweeps)} sweeps of {' to '.join(map(str, candidates))} candidates, budget in {axis}",
        caption=f"regret: best candidate minus the chosen one. Standard deviation over seeds: probe "
        f"{100 * accuracy:.2f} points, loss {loss:.4f}",
    )
    for title in ("policy", "samples", "seconds", "regret, points", "worst", "loss regret", "worst", "rank", "ms"):
        table.add_column(title, justify="left" if title == "policy" else "right")
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        ranks = [row["rank_correlation"] for row in own if row["rank_correlation"] is not None]
        table.add_row(
            policy,
            f"{_mean(own, 'cost_samples'):.2f}",
            f"{_mean(own, 'cost_seconds'):.2f}",
            f"{100 * _mean(own, 'regret'):.2f}",
            f"{100 * max(row['regret'] for row in own):.2f}",
            f"{_mean(own, 'reference_loss_regret'):.4f}",
            f"{max(row['reference_loss_regret'] for row in own):.4f}",
            f"{np.mean(ranks):.2f}" if ranks else "-",
            f"{_mean(own, 'milliseconds_per_decision'):.2f}",
        )
    return table


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


def _mean(rows: Sequence[Row], column: str) -> float:
    return float(np.mean([row[column] for row in rows]))
