"""Wall time of a run that chooses its batch size, compared with runs that are given one.

    python benchmarks/wall_time.py                            # small quickstart, 64 and 256; a few minutes on 2 cores
    python benchmarks/wall_time.py --quickstart --alone 256   # the whole quickstart
    python benchmarks/wall_time.py --cifar10 --alone 256      # for a GPU: 64, 256 and 1024, 24 epochs

Every run is a process of its own. First, ``adaptive-ray run`` chooses between all candidates; then each batch size
of ``--alone`` is trained with the same settings and budget. The wall time is split with the files of the run:
``elapsed`` in ``events.jsonl`` are seconds since the start of the run, and ``seconds`` include training only. Also
shown are the winner's throughput, measured alone before the race and after the decision, and the time to accuracy: when
each run first came within a point of the kNN accuracy that the best of the single batch sizes ends with. (Over seeds,
an accuracy has a standard deviation of half a point.)
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
#: Time to the accuracy of the best single batch size, relative to that batch size's own.
ACCURACY_GOAL, POINT = 1.15, 0.01
#: Configuration, candidates, settings, and the goal: wall time relative to that of a single batch size.
RUNS: dict[str, tuple[str, list[int], list[str], float]] = {
    "small": (
        *("configs/quickstart.yaml", [64, 256]),
        [
            *("budget.samples=6144", "race.window.samples=2048", "simclr.encoder.width=8"),
            "evaluation.every={samples: 1024}",
        ],
        1.6,
    ),
    "quickstart": ("configs/quickstart.yaml", [64, 128, 256], ["evaluation.every={epochs: 1}"], 1.6),
    "cifar10": (
        *("configs/cifar10.yaml", [64, 256, 1024]),
        ["budget.epochs=24", "race.window.epochs=2.4", "evaluation.every={epochs: 1}"],
        1.5,
    ),
}
ROWS = {
    "other": "imports, data, checks; results, exit",
    "start-up": "start-up, measurements, until the first report",
    "race": "race: from there to the decision",
    "gap": "from the decision to the winner's next step (goal without restart: 1)",
    "winner": "training of the winner from there",
    "evaluation": "evaluation, shutdown of Ray",
    "whole": "COMPLETE COMMAND",
}
Figures = dict[str, float]
Curve = list[tuple[float, float]]  # seconds since the start of the run, accuracy


def run(command: list[str], config: str, sizes: list[int], settings: list[str], directory: Path) -> Figures:
    """Runs the command with some candidates and returns its figures."""
    options = [f"candidates={sizes}", "tracking.enabled=false", *settings]
    line = [*command, "run", config, "--runs-dir", str(directory.parent), "--name", directory.name]
    line += [word for option in options for word in ("--set", option)]
    started = time.monotonic()
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"{shlex.join(line)} failed: {done.stderr[-2000:]}")
    return figures(directory, time.monotonic() - started)


def figures(directory: Path, wall: float) -> Figures:
    """Returns the phases of a run in seconds, and the throughputs of its winner in images per second."""
    events, decisions = (_lines(directory / name) for name in ("events.jsonl", "decisions.jsonl"))
    result = json.loads((directory / "result.json").read_text())
    reports = [event for event in events if event["event"] == "report"]
    own = [report for report in reports if report["candidate"] == result["winner"]]
    won = next(index for index, decision in enumerate(decisions) if decision["state"] == "won")
    # Each decision has the samples of the candidate's last report; the latest of these reports led to the decision.
    basis = {(decision["candidate"], decision["samples"]) for decision in decisions[: won + 1]}
    decided = max(each["elapsed"] for each in reports if (each["candidate"], each["samples"]) in basis)
    before = [report for report in own if report["elapsed"] <= decided][-1]
    after = [report for report in own if report["elapsed"] > decided and report["samples"] > before["samples"]]
    # An upper bound by the time of an evaluation, as in startup.py.
    again = max(after[0]["elapsed"] - (after[0]["seconds"] - before["seconds"]), decided) if after else decided
    alone = (event["throughput"] for event in events if event["event"] == "measure")
    keys = [event["candidate"] for event in events if event["event"] == "measure"]
    trained = after[-1]["seconds"] - after[0]["seconds"] if after else 0.0
    return {
        "winner size": result["chosen_batch_size"],
        "other": wall - result["seconds"],
        "start-up": reports[0]["elapsed"],
        "race": decided - reports[0]["elapsed"],
        "gap": again - decided,
        "winner": own[-1]["elapsed"] - again,
        "evaluation": result["seconds"] - own[-1]["elapsed"],
        "whole": wall,
        "measured": dict(zip(keys, alone, strict=True)).get(result["winner"], math.nan),
        "reached": (after[-1]["samples"] - after[0]["samples"]) / trained if trained else math.nan,
    }


def accuracy_curve(directory: Path) -> Curve:
    """Returns the winner's kNN accuracies, and when they were reported."""
    winner = json.loads((directory / "result.json").read_text())["winner"]
    own = [event for event in _lines(directory / "events.jsonl") if event.get("candidate") == winner]
    elapsed = {event["samples"]: event["elapsed"] for event in reversed(own) if event["event"] == "report"}
    return [
        (elapsed[report["samples_seen"]], report["online_knn_accuracy"])
        for report in _lines(directory / "reports.jsonl")
        if report["candidate"] == winner and report.get("online_knn_accuracy") is not None
    ]


def time_to(accuracy: float, curve: Curve) -> float:
    """Returns the seconds after which an accuracy is first reached; nan if it never is."""
    return next((seconds for seconds, reached in curve if reached >= accuracy), math.nan)


def show(found: dict[str, Figures], goal: float, title: str, curves: dict[str, Curve] | None = None) -> Table:
    """Returns the figures as a table; the first run is the one with several candidates."""
    table, runs = Table(title=title), list(found.values())
    for name in ("seconds", *found):
        table.add_column(name, justify="left" if name == "seconds" else "right")
    for key, name in ROWS.items():
        table.add_row(name, *(f"{each[key]:.1f}" for each in runs), end_section=key == "whole")
    table.add_row("winner", *(f"{each['winner size']:g}" for each in runs))
    table.add_row("its images/s, measured alone", *(_known(each["measured"], ",.0f") for each in runs))
    table.add_row("its images/s after the decision", *(_known(each["reached"], ",.0f") for each in runs))
    errors = (100 * (each["measured"] / each["reached"] - 1) for each in runs)
    table.add_row("difference, % (goal: 5)", *(_known(error, "+.1f") for error in errors))
    ratios = (f"{runs[0]['whole'] / each['whole']:.2f}" for each in runs[1:])
    table.add_row(f"several candidates, times this wall time (goal: {goal:g})", "", *ratios)
    several, *single = (curves or {"several": []}).values()
    best = max((curve for curve in single if curve), key=lambda curve: curve[-1][1], default=None)
    if best is not None:
        target = best[-1][1] - POINT
        reached = [time_to(target, curve) for curve in (several, *single)]
        table.add_row(f"seconds to {target:.1%} kNN accuracy", *(_known(each, ".1f") for each in reached))
        ratio = time_to(target, several) / time_to(target, best)
        table.add_row(f"- several candidates, times the best one's own (goal: {ACCURACY_GOAL})", _known(ratio, ".2f"))
    return table


def _known(number: float, form: str) -> str:
    """Formats a number; a single candidate need not have measured its throughput."""
    return format(number, form) if math.isfinite(number) else "-"


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quickstart", dest="which", action="store_const", const="quickstart", default="small")
    which.add_argument("--cifar10", dest="which", action="store_const", const="cifar10", help="needs a GPU")
    parser.add_argument("--batch-sizes", type=int, nargs="+", metavar="B", help="candidates of the first run")
    parser.add_argument("--alone", type=int, nargs="+", metavar="B", help="batch sizes trained alone; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as in adaptive-ray")
    parser.add_argument("--command", default=f"{shlex.quote(sys.executable)} -m adaptive_ray", help="adaptive-ray")
    options = parser.parse_args()
    config, sizes, settings, goal = RUNS[options.which]
    sizes, settings = options.batch_sizes or sizes, [*settings, *options.set]
    found: dict[str, Figures] = {}
    curves: dict[str, Curve] = {}
    title = f"{config}, candidates {', '.join(map(str, sizes))}; {', '.join(settings)}"
    with tempfile.TemporaryDirectory() as directory:
        for several in (sizes, *([size] for size in options.alone or sizes)):
            name = "several" if several is sizes else f"{several[0]} alone"
            runs = Path(directory) / name.replace(" ", "-")
            found[name] = run(shlex.split(options.command), config, several, settings, runs)
            curves[name] = accuracy_curve(runs)
            Console(width=130).print(show(found, goal, title, curves))  # so far: a time limit may end the benchmark


if __name__ == "__main__":
    main()
