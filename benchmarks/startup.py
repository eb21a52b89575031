"""Measures the start-up time of a run, and the fractions of wall time of the race and other phases.

    python benchmarks/startup.py                 # with and without MLflow; about three minutes on 2 cores
    python benchmarks/startup.py --repeats 3

It runs ``adaptive-ray run`` on a short quickstart and records when each ``[m:ss]`` line arrives, relative to the start
of the command. ``seconds`` in ``reports.jsonl`` only include training. A candidate's training starts at the arrival of
its first report minus its ``seconds``, and its first step ends one step later. This includes the evaluation and the
delivery of the report, so the time is an upper bound, by less than a second.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("candidates=[64, 256]", "budget.samples=6144", "race.window.samples=2048", "simclr.encoder.width=8")
ROWS = {
    "imports": "until the first line: imports, data, checks",
    "ray": "starting Ray (and MLflow)",
    "first step": "FROM THE COMMAND TO THE FIRST STEP OF ALL CANDIDATES",
    "race start": "    from the start of the race to that step",
    "race": "race, from its start to its decision",
    "share": "RACE, % OF THE WALL TIME",
    "training": "    training time of its slowest candidate",
    "restart": "from the decision to the winner's next step",
    "winner": "training of the winner from there",
    "probing": "evaluation, report, shutdown of Ray",
    "whole": "complete command",
}


def run(tracking: bool, runs: Path, settings: list[str]) -> tuple[list[tuple[float, str]], float, list[dict[str, Any]]]:
    """Runs the command and returns its lines with their times, the wall time, and the reports."""
    options = [*SETTINGS, f"tracking.enabled={str(tracking).lower()}", *settings]
    command = [sys.executable, "-m", "adaptive_ray", "run", "configs/quickstart.yaml", "--runs-dir", str(runs)]
    command += ["--name", "startup", *(word for option in options for word in ("--set", option))]
    started = time.monotonic()
    with (runs / "errors").open("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)  # noqa: S603
        assert process.stdout is not None
        lines = [(time.monotonic() - started, line.strip()) for line in process.stdout]
        if process.wait():
            errors.seek(0)
            sys.exit(f"adaptive-ray run failed: {errors.read()[-2000:]}")
    whole = time.monotonic() - started
    reports = [json.loads(line) for line in (runs / "startup" / "reports.jsonl").read_text().splitlines()]
    return lines, whole, reports


def figures(lines: list[tuple[float, str]], whole: float, reports: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the rows of the table, in seconds except for the fraction."""

    def arrival(pattern: str) -> list[float]:
        return [when for when, line in lines if re.match(r"\[\d+:\d\d\] " + pattern, line)]

    lines_of = ("starting Ray", "race: ", r"batch size \d+ won", "evaluating")
    (begin,), (race,), (won,), (probing,) = map(arrival, lines_of)
    arrivals = arrival(r"batch size \d+: ")  # one per report, in the same order
    assert len(arrivals) == len(reports), "there must be one line per report"
    first: dict[str, float] = {}
    trained: dict[str, float] = {}
    for when, report in zip(arrivals, reports, strict=True):
        step = report["seconds"] * report["batch_size"] / report["samples_seen"]
        first.setdefault(report["candidate"], when - report["seconds"] + step)
        if when <= won + 0.5:  # the decision is printed just before the report that led to it
            trained[report["candidate"]] = report["seconds"]
    winner = reports[-1]["candidate"]
    after = next(w for w, r in zip(arrivals, reports, strict=True) if r["candidate"] == winner and w > won + 0.5)
    seconds = [r["seconds"] for r in reports if r["candidate"] == winner]
    worked = next(s for s in seconds if s > trained[winner]) - trained[winner]
    again = after - worked
    ready = max(first.values())
    return {
        "imports": begin,
        "ray": race - begin,
        "first step": ready,
        "race start": ready - race,
        "race": won - race,
        "share": 100 * (won - race) / whole,
        "training": max(trained.values()),
        "restart": again - won,
        "winner": probing - again,
        "probing": whole - probing,
        "whole": whole,
    }


def imports(module: str) -> tuple[float, list[tuple[str, float]]]:
    """Returns the import time in seconds, and the five packages with the longest own time."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    packages: Counter[str] = Counter()
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
        packages[name.partition(".")[0]] += int(own)
    return sum(packages.values()) / 1e6, [(name, own / 1e6) for name, own in packages.most_common(5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="repeats with and without MLflow; medians are shown")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as in adaptive-ray")
    options = parser.parse_args()
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)  # noqa: S607
    if "/raylet" in processes.stdout:
        sys.exit("another Ray cluster is running on this machine and would affect the measurement; stop it")
    collected: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for _ in range(options.repeats):
        for tracking, found in collected.items():
            with tempfile.TemporaryDirectory() as directory:
                found.append(figures(*run(tracking, Path(directory), options.set)))
    table = Table(title=f"adaptive-ray run: quickstart with {', '.join(SETTINGS)}; median of {options.repeats}")
    for title in ("seconds", "MLflow on", "MLflow off"):
        table.add_column(title, justify="left" if title == "seconds" else "right")
    for key, title in ROWS.items():
        table.add_row(title, *(f"{statistics.median(f[key] for f in found):.1f}" for found in collected.values()))
    console = Console(width=130)
    console.print(table)
    for module in ("trainables.on_ray.worker", "adaptive_ray.cli"):
        whole, top = imports(module)
        packages = ", ".join(f"{name} {own:.2f}" for name, own in top)
        console.print(f"import {module}: {whole:.2f} s; longest: {packages}", highlight=False)


if __name__ == "__main__":
    main()
