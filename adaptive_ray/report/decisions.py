"""Formats the decisions of a race as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from schedulers import Forecast, State

#: Colour of each state on a console.
STATE_COLOURS = {State.RACING: "cyan", State.WAITING: "yellow", State.PRUNED: "red", State.WON: "green"}


def last_decisions(decisions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last decision on each candidate, in the order in which candidates first appear."""
    return list({entry["candidate"]: entry for entry in decisions}.values())


def decision_rows(decisions: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Formats decisions (entries of ``decisions.jsonl``) as rows, the winner first."""
    rows = []
    for entry in sorted(decisions, key=lambda entry: entry["state"] != State.WON):
        mean, std = entry["forecast"]["mean"], entry["forecast"]["std"]
        rate, alone = entry["log_rate"], entry.get("throughput_alone")
        efficiency = f"{math.exp(rate[0]):.2f} ± {100 * math.expm1(rate[1]):.0f} %" if rate else "-"
        rows.append(
            {
                "batch size": str(entry["candidate"]),
                "reference loss": f"{format_number(entry['loss'])} at {entry['samples']:,.0f}",
                "forecast (80 %)": "-" if mean is None or std is None else format_forecast(Forecast(mean, std)),
                "statistical efficiency": efficiency,
                "images/s alone (in the race)": _format_throughput(alone, entry["throughput"]),
                "state": str(entry["state"]),
                "reason": str(entry["reason"]),
            }
        )
    return rows


def decision_table(decisions: Sequence[Mapping[str, Any]]) -> Table:
    """Formats decisions as a table for the console, the winner first."""
    rows = decision_rows(decisions)
    titles = rows[0] if rows else ()
    columns = (Column(title, justify="left" if title in ("state", "reason") else "right") for title in titles)
    table = Table(*columns, title="Candidates", title_justify="left", title_style="bold")
    for row in rows:
        state = State(row["state"])
        table.add_row(*list(row.values())[:-2], Text(state.value, style=STATE_COLOURS[state]), Text(row["reason"]))
    return table


def format_restart(candidate: Any, samples: float, reason: str) -> str:
    """Formats the restart of a candidate as one line."""
    return f"{candidate} restarted after {samples:,.0f} samples: {reason}"


def format_forecast(forecast: Forecast) -> str:
    """Formats the mean and the 80 % interval; "-" if they are not finite."""
    if not all(map(math.isfinite, forecast)):
        return "-"
    low, high = forecast.interval()
    return f"{forecast.mean:.3f} [{low:.3f}, {high:.3f}]"


def _format_throughput(alone: float | None, shared: float | None) -> str:
    first, second = (f"{value:,.0f}" if value else "-" for value in (alone, shared))
    return f"{first} ({second})" if alone or shared else "-"


def format_number(value: Any) -> str:
    """Formats a number with three decimals; "-" if it is not finite."""
    return f"{value:.3f}" if isinstance(value, float) and math.isfinite(value) else "-"
