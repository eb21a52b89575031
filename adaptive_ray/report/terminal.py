"""Shows a run's progress on the console, and the candidates in a table at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from adaptive_ray.config.plan import Plan
from schedulers import Candidate, Decision, Forecast, Race, State
from schedulers.events import Restart

_COLOUR = {State.RACING: "cyan", State.WAITING: "yellow", State.PRUNED: "red", State.WON: "green"}


@dataclass(frozen=True)
class _Snapshot:
    """What is shown. The display's thread must not read a race while the scheduler fits its curves."""

    standings: tuple[Decision, ...] = ()
    last: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # metrics by candidate

    @property
    def winner(self) -> Decision | None:
        return next((standing for standing in self.standings if standing.state is State.WON), None)

    def with_report(self, standings: Sequence[Decision], candidate: str, metrics: Mapping[str, Any]) -> _Snapshot:
        return _Snapshot(tuple(standings), {**self.last, candidate: metrics})

    def with_decision(self, decision: Decision) -> _Snapshot:
        standings = (decision if standing.key == decision.key else standing for standing in self.standings)
        return _Snapshot(tuple(standings), self.last)


class Progress:
    """A live table on a terminal; a line per report where there is none (a job's log, a pipe)."""

    plan: Plan  # known before the first report

    def __init__(self, console: Console, plan: Plan | None = None) -> None:
        if plan is not None:
            self.plan = plan
        self._console = console
        self._embedding: tuple[float, int, int] | None = None  # since when, from where, and what was last told
        self._phase = ""
        self._shown = _Snapshot()  # replaced as a whole
        self._started = time.monotonic()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def phase(self, text: str) -> None:
        """Says what is happening now."""
        self._phase = text
        if not self._live:
            self._console.print(f"[{self._elapsed()}] {text}", markup=False, highlight=False, soft_wrap=True)

    def embedded(self, done: int, total: int, actors: int) -> None:
        """Says how many images have been embedded; without a terminal at every tenth."""
        now = time.monotonic()
        if self._embedding is None:
            self._embedding = now, done, -1
        since, first, told = self._embedding
        pace = (done - first) / max(now - since, 1e-9)
        left = f", {pace:,.0f} images/s, {_clock((total - done) / pace)} left" if pace else ""
        if self._live or 10 * done // total > told:
            self._embedding = since, first, 10 * done // total
            self.phase(f"embedding by {actors} actors: {done:,} of {total:,} images{left}")

    def report(self, race: Race, candidate: str, metrics: Mapping[str, Any]) -> None:
        """Shows a candidate's report."""
        self._shown = self._shown.with_report(race.standings(), candidate, metrics)
        if self._shown.winner is not None and self._phase.startswith("race"):
            self._phase = f"winner's training: batch size {self._shown.winner.key} continues to the end of the budget"
        if self._live:
            return
        standing = next(s for s in self._shown.standings if s.key == candidate)
        used = Candidate.from_dict(metrics)  # a run may have swapped
        samples, loss = metrics["samples_seen"], metrics.get("reference_loss")
        self._console.print(
            f"[{self._elapsed()}] batch size {used}: {samples:,} of {self.plan.budget:,} samples, reference "
            f"loss {_number(loss)}, forecast {_interval(standing.forecast)}, "
            f"{metrics.get('images_per_second') or math.nan:,.0f} images/s, {self._time_left(self._shown)} left",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def decided(self, decision: Decision) -> None:
        """Says what has been decided."""
        self._shown = self._shown.with_decision(decision)
        if decision.state is State.WAITING:
            return
        if decision.state is State.RACING:
            self._phase = "race: candidates side by side"
        text = f"[{self._elapsed()}] batch size {decision.key} {decision.state.value}: {decision.reason}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True, style=_COLOUR[decision.state])

    def restarted(self, restart: Restart) -> None:
        """Says that a candidate was restarted, and why."""
        text = f"[{self._elapsed()}] batch size {restart_line(restart.candidate, restart.samples, restart.reason)}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True, style="yellow")

    def swapped(self, decision: Mapping[str, Any]) -> None:
        """Says what was done about the loader inside the run, if anything."""
        if decision["action"] == "keep":
            return
        words = {"swap": "is swapped for", "return": "returns to", "confirm": "stays:"}[decision["action"]]
        chosen = "" if decision["action"] == "confirm" else f" {decision['chosen']}:"
        text = f"{decision['candidate']} {words}{chosen} {decision['reason']}"
        text = f"[{self._elapsed()}] batch size {text}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True, style="magenta")

    def _elapsed(self) -> str:
        return _clock(time.monotonic() - self._started)

    def _time_left(self, shown: _Snapshot) -> str:
        """Until training ends: the rest of the race at the slowest one's pace, the rest of the budget at everyone's."""
        plan, winner = self.plan, shown.winner
        alive = [str(standing.key) for standing in shown.standings if standing.state is not State.PRUNED]
        paces = {key: float(m.get("images_per_second") or 0) for key, m in shown.last.items()}
        if not alive or not all(paces.get(key) for key in alive):
            return "?"
        seen = {key: float(m["samples_seen"]) for key, m in shown.last.items()}
        if winner is not None:
            return _clock((plan.budget - seen[str(winner.key)]) / paces[str(winner.key)])
        together = sum(paces[key] for key in alive)
        waiting = max(max(plan.window - seen[key], 0.0) / paces[key] for key in alive)
        return "about " + _clock(waiting + (plan.budget - plan.window) / together)

    def _render(self) -> Group:
        shown = self._shown
        head = Spinner("dots", Text(f" {self._elapsed()}  {self._phase}", style="bold"))
        if not shown.standings:
            return Group(head)
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("batch size", "samples", "", "reference loss", "forecast (80 %)", "images/s", ""):
            table.add_column(title, justify="left" if title == "" else "right")
        for standing in shown.standings:
            metrics = shown.last.get(str(standing.key), {})
            seen = metrics.get("samples_seen", 0)
            table.add_row(
                str(standing.key),
                f"{seen:,}",
                ProgressBar(total=self.plan.budget, completed=seen, width=24),
                _number(metrics.get("reference_loss")),
                _interval(standing.forecast),
                f"{metrics.get('images_per_second') or math.nan:,.0f}",
                Text(standing.state.value, style=_COLOUR[standing.state]),
            )
        return Group(head, table, Text(f"{self._time_left(shown)} of training left", style="dim"))


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Prints sentences as they are, on one line each."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def results_table(verdicts: Sequence[Mapping[str, Any]]) -> Table:
    """The candidates' last decisions (entries of ``decisions.jsonl``), the winner first."""
    table = Table(title="Candidates", title_justify="left", title_style="bold")
    for title in ("batch size", "reference loss", "forecast (80 %)", "progress rate", "images/s", "verdict", "why"):
        table.add_column(title, justify="left" if title in ("verdict", "why") else "right")
    for row in verdict_rows(verdicts):
        state = State(row["verdict"])
        table.add_row(*list(row.values())[:-2], Text(state.value, style=_COLOUR[state]), Text(row["why"]))
    return table


def verdict_rows(verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The candidates' last decisions in words, the winner first."""
    rows = []
    for entry in sorted(verdicts, key=lambda entry: entry["state"] != State.WON):
        mean, std = entry["forecast"]["mean"], entry["forecast"]["std"]
        rate, pace = entry["log_rate"], entry["throughput"]
        rows.append(
            {
                "batch size": str(entry["candidate"]),
                "reference loss": f"{_number(entry['loss'])} at {entry['samples']:,.0f}",
                "forecast": "-" if mean is None or std is None else _interval(Forecast(mean, std)),
                "progress rate": "-" if not rate else f"{math.exp(rate[0]):.2f} ± {100 * math.expm1(rate[1]):.0f} %",
                "images/s": f"{pace:,.0f}" if pace else "-",
                "verdict": str(entry["state"]),
                "why": str(entry["reason"]),
            }
        )
    return rows


def restart_line(candidate: Any, samples: float, reason: str) -> str:
    """Why a candidate was restarted, and after how many samples, in a line."""
    return f"{candidate} was restarted after {samples:,.0f} samples: {reason}"


def _interval(forecast: Forecast) -> str:
    if not all(map(math.isfinite, forecast)):
        return "-"
    low, high = forecast.interval()
    return f"{forecast.mean:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) and math.isfinite(value) else "-"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(int(seconds), 0), 60)
    return f"{minutes}:{rest:02d}"
