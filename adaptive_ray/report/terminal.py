"""Shows the progress of a run on the console."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from adaptive_ray.config.plan import Plan
from adaptive_ray.report.decisions import STATE_COLOURS, format_forecast, format_number, format_restart
from schedulers import Decision, Race, State
from schedulers.events import Restart
from trainables.report import TrainingReport


@dataclass(frozen=True)
class _Snapshot:
    """State of the display. Its thread must not read a race while the scheduler fits curves."""

    standings: tuple[Decision, ...] = ()
    last: Mapping[str, TrainingReport] = field(default_factory=dict)  # by candidate
    totals: Mapping[str, float] = field(default_factory=dict)  # samples of the whole run, by candidate

    @property
    def winner(self) -> Decision | None:
        return next((standing for standing in self.standings if standing.state is State.WON), None)


class Progress:
    """Shows a live table on a terminal, or prints one line per report to a log."""

    plan: Plan  # set before the first report

    def __init__(self, console: Console) -> None:
        self._console = console
        self._embedding: tuple[float, int, int] | None = None  # start time, images then, and last tenth shown
        self._phase = ""
        self._shown = _Snapshot()  # replaced atomically
        self._started = time.monotonic()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def phase(self, text: str) -> None:
        """Shows the current phase of the run."""
        self._phase = text
        if not self._live:
            self._print(text)

    def note(self, text: str) -> None:
        """Prints a line that later phases do not replace."""
        self._print(text)

    def embedded(self, done: int, total: int, actors: int) -> None:
        """Shows how many images are embedded; in a log, once per 10 %."""
        now = time.monotonic()
        if self._embedding is None:
            self._embedding = now, done, -1
        since, first, shown = self._embedding
        pace = (done - first) / max(now - since, 1e-9)
        left = f", {pace:,.0f} images/s, {_clock((total - done) / pace)} left" if pace else ""
        if self._live or 10 * done // total > shown:
            self._embedding = since, first, 10 * done // total
            self.phase(f"embedding with {actors} actors: {done:,} of {total:,} images{left}")

    def report(self, race: Race, candidate: str, report: TrainingReport) -> None:
        """Shows the report of a candidate."""
        totals = {str(key): race.horizon(key) for key in race.keys}
        self._shown = _Snapshot(tuple(race.standings()), {**self._shown.last, candidate: report}, totals)
        if self._shown.winner is not None and self._phase.startswith("race"):
            self._phase = f"winner's training: batch size {self._shown.winner.key} continues"
        if self._live:
            return
        standing = next(s for s in self._shown.standings if s.key == candidate)
        self._print(
            f"batch size {report.candidate}: {report.samples_seen:,} of {totals[candidate]:,.0f} samples, "
            f"reference loss {format_number(report.reference_loss)}, forecast {format_forecast(standing.forecast)}, "
            f"{report.images_per_second:,.0f} images/s, {self._time_left(self._shown)} left"
        )

    def decided(self, decision: Decision) -> None:
        """Shows a decision of the race."""
        standings = (decision if standing.key == decision.key else standing for standing in self._shown.standings)
        self._shown = replace(self._shown, standings=tuple(standings))
        if decision.state is State.WAITING:
            return
        if decision.state is State.RACING:
            self._phase = "race: candidates in parallel"
        text = f"batch size {decision.key} {decision.state.value}: {decision.reason}"
        self._print(text, STATE_COLOURS[decision.state])

    def restarted(self, restart: Restart) -> None:
        """Shows that a candidate was restarted."""
        self._print(f"batch size {format_restart(restart.candidate, restart.samples, restart.reason)}", "yellow")

    def swapped(self, decision: Mapping[str, Any]) -> None:
        """Shows a decision to swap the candidate within a run."""
        if decision["action"] == "keep":
            return
        words = {"swap": "swapped to", "return": "returned to", "confirm": "confirmed:"}[decision["action"]]
        chosen = "" if decision["action"] == "confirm" else f" {decision['chosen']}:"
        self._print(f"batch size {decision['candidate']} {words}{chosen} {decision['reason']}", "magenta")

    def _print(self, text: str, style: str | None = None) -> None:
        print_lines(self._console, [f"[{self._elapsed()}] {text}"], style)

    def _elapsed(self) -> str:
        return _clock(time.monotonic() - self._started)

    def _time_left(self, shown: _Snapshot) -> str:
        """Estimates the remaining training time: the race at the slowest candidate's throughput, then the winner."""
        plan, winner = self.plan, shown.winner
        alive = [str(standing.key) for standing in shown.standings if standing.state is not State.PRUNED]
        paces = {key: report.images_per_second for key, report in shown.last.items()}
        if not alive or not all(paces.get(key, 0) > 0 for key in alive):
            return "?"
        seen = {key: report.samples_seen for key, report in shown.last.items()}
        if winner is not None:
            return _clock((shown.totals[str(winner.key)] - seen[str(winner.key)]) / paces[str(winner.key)])
        if plan.time is not None:
            return "about " + _clock(plan.time.budget - min(shown.last[key].seconds for key in alive))
        together = sum(paces[key] for key in alive)
        waiting = max(max(plan.window - seen[key], 0.0) / paces[key] for key in alive)
        return "about " + _clock(waiting + (plan.budget - plan.window) / together)

    def _render(self) -> Group:
        shown = self._shown
        head = Spinner("dots", Text(f" {self._elapsed()}  {self._phase}", style="bold"))
        if not shown.standings:
            return Group(head)
        titles = ("batch size", "samples", "", "reference loss", "forecast (80 %)", "images/s", "")
        columns = (Column(title, justify="right" if title else "left") for title in titles)
        table = Table(*columns, box=None, padding=(0, 2, 0, 0))
        for standing in shown.standings:
            report = shown.last.get(str(standing.key))
            seen = report.samples_seen if report else 0
            table.add_row(
                str(standing.key),
                f"{seen:,}",
                ProgressBar(total=shown.totals.get(str(standing.key), math.inf), completed=seen, width=24),
                format_number(report.reference_loss if report else math.nan),
                format_forecast(standing.forecast),
                f"{report.images_per_second if report else math.nan:,.0f}",
                Text(standing.state.value, style=STATE_COLOURS[standing.state]),
            )
        return Group(head, table, Text(f"{self._time_left(shown)} of training left", style="dim"))


def print_lines(console: Console, lines: Iterable[str], style: str | None = None) -> None:
    """Prints lines without markup or wrapping."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True, style=style)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(int(seconds), 0), 60)
    return f"{minutes}:{rest:02d}"
