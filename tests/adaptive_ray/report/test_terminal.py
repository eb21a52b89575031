"""Progress of a run: one line per report in a log, a live table on a terminal."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from adaptive_ray.config.plan import Plan
from adaptive_ray.report.terminal import Progress
from schedulers import Candidate, Race, State
from schedulers.forecast.base import Curves, Ends, LearningRates
from schedulers.forecast.per_curve import PerCurveForecaster
from trainables.report import TrainingReport

BUDGET, WINDOW, EVERY = 16_384, 4096, 1024
BOTH = (Candidate(32), Candidate(64))
PLAN = Plan(
    BOTH, BOTH, {c: c.batch_size for c in BOTH}, 4000, BUDGET, WINDOW, evaluate_every=EVERY, turn=4000, rerace="never"
)
SPEED = {"32": 100.0, "64": 200.0}  # images per second


def loss(key: str, samples: int) -> float:
    rate = {"32": 1.5, "64": 1.0}[key]
    return 3.0 + 3.0 * (rate * samples / 1000 + 1) ** -0.5


def new_race(**settings: Any) -> Race:
    return Race(["32", "64"], budget=BUDGET, window=WINDOW, **{"prune_below": 0.0} | settings)


def step(progress: Progress, race: Race, key: str, samples: int, **metrics: Any) -> None:
    """Sends a report to the race and shows it."""
    decisions = race.report(key, samples, loss(key, samples), samples / SPEED[key])
    values = {
        "samples_seen": samples,
        "batch_size": int(key),
        "reference_loss": loss(key, samples),
        "images_per_second": SPEED[key],
    }
    for decision in decisions:
        progress.decided(decision)
    progress.report(race, key, TrainingReport(**{**values, **metrics}))


def whole_race(progress: Progress) -> Race:
    race = new_race()
    for samples in range(EVERY, WINDOW + 1, EVERY):
        for key in race.keys:
            step(progress, race, str(key), samples)
    return race


class TestWithoutTerminal:
    @pytest.fixture
    def out(self) -> io.StringIO:
        return io.StringIO()

    @pytest.fixture
    def progress(self, out: io.StringIO) -> Progress:
        progress = Progress(Console(file=out, width=80))
        progress.plan = PLAN
        return progress

    def test_one_line_per_report(self, progress: Progress, out: io.StringIO) -> None:
        with progress:
            progress.phase("race: batch sizes 32, 64 in parallel")
            race = new_race()
            for samples in (1024, 2048, 3072):
                for key in ("32", "64"):
                    step(progress, race, key, samples)
        lines = out.getvalue().splitlines()
        assert len(lines) == 7
        assert lines[0].endswith("race: batch sizes 32, 64 in parallel")
        assert f"batch size 32: 1,024 of 16,384 samples, reference loss {loss('32', 1024):.3f}" in lines[1]
        assert "200 images/s" in lines[2]
        standing = race.standings()[1]
        low, high = standing.forecast.interval()
        assert f"forecast {standing.forecast.mean:.3f} [{low:.3f}, {high:.3f}]" in lines[6]
        assert all(re.match(r"\[\d+:\d\d\] ", line) for line in lines)

    def test_decisions(self, progress: Progress, out: io.StringIO) -> None:
        race = whole_race(progress)
        said = [line for line in out.getvalue().splitlines() if " reference loss " not in line]
        assert len(said) == 2  # nothing of those that wait
        assert "batch size 64 pruned: loss" in said[0]
        assert "batch size 32 won: lowest loss" in said[1]
        assert race.winner == "32"

    def test_a_run_that_swaps(self, progress: Progress, out: io.StringIO) -> None:
        common = {"candidate": "32", "chosen": "64", "reason": "-2.1 standard deviations"}
        progress.swapped({**common, "action": "keep"})
        assert out.getvalue() == ""
        progress.swapped({**common, "action": "swap"})
        assert "batch size 32 swapped to 64: -2.1 standard deviations" in out.getvalue()
        step(progress, new_race(), "32", 1024, batch_size=64)
        assert "batch size 64: 1,024 of" in out.getvalue()

    def test_reasons_are_printed_literally(self, progress: Progress, out: io.StringIO) -> None:
        reason = "RuntimeError: [enforce fail at alloc.cpp:117] cannot open [/dev/shm/x]"
        progress.decided(new_race().fail("64", reason)[0])
        assert reason in out.getvalue()

    def test_time_left(self, progress: Progress, out: io.StringIO) -> None:
        race = new_race()
        step(progress, race, "32", 1024)
        assert out.getvalue().endswith(" ? left\n")  # the other has not shown its pace
        step(progress, race, "64", 1024)
        # the slower one has 3,072 samples left in the window at 100 per second; then both share the machine
        seconds = 3072 / 100 + (BUDGET - WINDOW) / 300
        assert out.getvalue().endswith(f" about {int(seconds // 60)}:{int(seconds % 60):02d} left\n")

    def test_time_left_of_the_winner(self, progress: Progress, out: io.StringIO) -> None:
        race = whole_race(progress)
        step(progress, race, "32", 8192, images_per_second=50.0)
        assert out.getvalue().endswith(" 2:43 left\n")  # 8,192 at 50 a second are 163.84 s

    def test_no_time_left_without_running_candidates(self, progress: Progress, out: io.StringIO) -> None:
        race = new_race()
        step(progress, race, "32", 1024)
        for key in ("32", "64"):
            race.fail(key, "loss became nan")
        progress.report(race, "32", TrainingReport(batch_size=32, samples_seen=1024, reference_loss=math.nan))
        assert out.getvalue().endswith(" ? left\n")

    def test_unknown_numbers(self, progress: Progress, out: io.StringIO) -> None:
        race = new_race()
        race.fail("64", "loss became nan")
        progress.report(race, "64", TrainingReport(batch_size=64, samples_seen=64, reference_loss=math.nan))
        assert "reference loss -, forecast -, nan images/s" in out.getvalue()


class TestOnATerminal:
    @pytest.fixture(autouse=True)
    def _terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm-256color")

    def test_a_live_table(self) -> None:
        out = io.StringIO()
        with Progress(Console(file=out, force_terminal=True, width=140)) as progress:
            progress.plan = PLAN
            progress.phase("starting Ray and MLflow")
            progress.note("Ray dashboard: http://127.0.0.1:8265")
            progress.phase("race: batch sizes 32, 64 in parallel")
            race = new_race()
            step(progress, race, "32", 1024)
            step(progress, race, "64", 2048)
        assert "Ray dashboard: http://127.0.0.1:8265\n" in out.getvalue()
        screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
        for text in ("race: batch sizes", "reference loss", "forecast (80 %)", "1,024", "2,048", "racing", "left"):
            assert text in screen
        assert f"{loss('64', 2048):.3f}" in screen
        assert "of 16,384 samples" not in screen  # the lines of a log

    def test_the_phase_follows_the_race(self) -> None:
        out = io.StringIO()
        with Progress(Console(file=out, force_terminal=True, width=140)) as progress:
            progress.plan = PLAN
            progress.phase("race: batch sizes 32, 64 in parallel")
            whole_race(progress)
        screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
        assert "winner's training: batch size 32 continues" in screen
        assert "pruned" in screen
        assert "won" in screen

    def test_the_screen_is_refreshed_while_curves_are_fitted(self) -> None:
        """The display refreshes in another thread; here it always does during a fit."""
        refreshed = 0

        class Shown(PerCurveForecaster):
            def fit(
                self, curves: Curves, ends: Ends | None = None, learning_rates: LearningRates | None = None
            ) -> None:
                nonlocal refreshed
                self._fits = {}  # as in the middle of a fit
                if progress._live is not None:
                    progress._live.refresh()
                    refreshed += 1
                super().fit(curves, ends, learning_rates)

        out = io.StringIO()
        with Progress(Console(file=out, force_terminal=True, width=140)) as progress:
            progress.plan = PLAN
            race = new_race(forecaster=Shown())
            for samples in (1024, 2048, 3072):
                for key in ("32", "64"):
                    step(progress, race, key, samples)
            progress.decided(race.fail("64", "out of memory")[0])
            shown = progress._shown.standings
        assert refreshed > 6
        assert [standing.state for standing in shown] == [State.RACING, State.PRUNED]  # known before the next report

    def test_errors_in_the_block_are_raised(self) -> None:
        with pytest.raises(KeyboardInterrupt), Progress(Console(file=io.StringIO(), force_terminal=True)):
            raise KeyboardInterrupt
