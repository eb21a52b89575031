"""Measures images per second and the phases of a training step, compared with lightly's SimCLR example.

    python benchmarks/throughput.py                        # ResNet 16-32-64, B = 256
    python benchmarks/throughput.py --backbone resnet18 --batch-size 512
    python benchmarks/throughput.py --quick --no-lightly   # a smoke test

A step loads images, computes two views, the forward pass, the loss and the backward pass, and updates the weights. This
project's step is that of ``trainables.training.run``. lightly's step is that of its example, with the same backbone,
batch, temperature and optimizer, and the fastest number of loader workers. Every row runs in its own process. Rows
alternate, and medians are shown. Phases are measured in separate passes that wait for the device after each phase.
"""

from __future__ import annotations

import argparse
import atexit
import multiprocessing
import os
import statistics
from pathlib import Path
from typing import Any

from implementations import Images, Lightly, Ours, pick_device
from rich.console import Console
from rich.table import Table
from stopwatch import PHASES, Split

from trainables.training.memory_limits import KEEP_MEMORY


class Row:
    """An implementation in its own process, with its own allocator settings."""

    def __init__(self, name: str, side: type[Ours] | type[Lightly], options: argparse.Namespace, keep: bool) -> None:
        self.name = name
        self.seconds: list[float] = []  # of a step, one per repeat
        self.parts: Split = {}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, side, options))
        before = dict(os.environ)
        os.environ.update(KEEP_MEMORY if keep else {})
        self._process.start()
        for variable in KEEP_MEMORY.keys() - before.keys():
            os.environ.pop(variable, None)
        theirs.close()
        atexit.register(self._pipe.close)  # so that the process ends after an error here

    def ask(self, method: str, *args: Any) -> Any:
        self._pipe.send((method, args))
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, side: type[Ours] | type[Lightly], options: argparse.Namespace) -> None:
    implementation = side(options)
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(implementation, method)(*args))


def ours(options: argparse.Namespace) -> list[Row]:
    """This project on a CPU with and without ``KEEP_MEMORY``; on a GPU compiled, with CUDA graphs, and without both."""

    def row(name: str, accelerate: str, *, keep: bool = False) -> Row:
        return Row(name, Ours, argparse.Namespace(**{**vars(options), "accelerate": accelerate}), keep)

    if pick_device().type == "cpu":
        return [row("adaptive_ray", "auto"), row("adaptive_ray, memory kept", "auto", keep=True)]
    names = {"auto": "compiled and captured", "graphs": "captured", "none": "neither"}
    return [row(f"adaptive_ray, {name}", accelerate) for accelerate, name in names.items()]


def implementations(options: argparse.Namespace) -> list[Row]:
    """Starts the implementations of this project and of lightly."""
    rows = ours(options)
    for row in rows:
        row.ask("facts")  # compiles before times are measured
    if not options.lightly:
        return rows
    best, row = best_lightly(options)
    rows.append(row)
    if pick_device().type == "cpu":
        rows.append(_lightly(best, options, keep=True))
    return rows


def best_lightly(options: argparse.Namespace) -> tuple[int, Row]:
    """Finds the number of lightly's loader workers that is fastest on this machine."""
    trials = {workers: _lightly(workers, options) for workers in options.lightly_workers}
    turns = [
        {workers: trial.ask("measure", min(options.steps, 10)) for workers, trial in trials.items()}
        for _ in range(options.passes)
    ]
    times = {workers: statistics.median(turn[workers] for turn in turns) for workers in trials}
    paces = (f"{workers}: {options.batch_size / seconds:,.0f} images/s" for workers, seconds in times.items())
    print("lightly's loader workers:", *paces, sep="  ", flush=True)
    best = min(times, key=times.__getitem__)
    for workers in trials.keys() - {best}:
        trials[workers].close()
    return best, trials[best]


def _lightly(workers: int, options: argparse.Namespace, *, keep: bool = False) -> Row:
    name = f"lightly, {workers} loader worker{'s' * (workers != 1)}{', memory kept' * keep}"
    return Row(name, Lightly, argparse.Namespace(**{**vars(options), "workers": workers}), keep)


def show(rows: list[Row], options: argparse.Namespace, facts: dict[str, Any], console: Console) -> None:
    """Prints the time of a step, and whether the goals are met."""
    size = options.batch_size
    console.print(
        f"{facts['device']}, {facts['cores']} cores, {facts['threads']} threads, torch {facts['torch']}, computes in "
        f"bfloat16: {facts['bf16']}, autocast {facts['autocast']}; {'CIFAR-10' if options.real else 'random images'}",
        highlight=False,
    )
    theirs = next((statistics.median(row.seconds) for row in rows if row.name.startswith("lightly")), None)
    titles = ("ms", "images/s", "lowest-highest", "x lightly", "peak %")
    table = _table(
        f"Training steps, {options.backbone}, B = {size}, median of {options.repeats} x {options.steps}", titles
    )
    for row in rows:
        seconds = statistics.median(row.seconds)
        table.add_row(
            row.name,
            f"{1000 * seconds:,.1f}",
            f"{size / seconds:,.0f}",
            f"{size / max(row.seconds):,.0f}-{size / min(row.seconds):,.0f}",
            f"{theirs / seconds:.2f}" if theirs else "-",
            f"{100 * facts['flops'] * size / seconds / facts['peak']:.0f}",
        )
    console.print(table)
    console.print(
        f"peak %: {facts['flops'] / 1e9:.2f} GFLOP an image, as a share of a large matrix product's "
        f"{facts['peak'] / 1e9:,.0f} GFLOP/s.",
        highlight=False,
    )
    on_gpu = pick_device().type == "cuda"
    for row in [row for row in rows if row.name.startswith("adaptive_ray")][: 1 if on_gpu else None]:
        pace = options.batch_size / statistics.median(row.seconds)
        if theirs:
            ratio, goal = theirs * pace / options.batch_size, 10.0 if on_gpu else 2.5
            _verdict(console, f"{row.name}: at least {goal:g} times lightly", f"{ratio:.2f} times", ratio >= goal)
        if on_gpu and options.backbone == "resnet18" and options.batch_size == 512:
            _verdict(console, f"{row.name}: 30,000 images/s", f"{pace:,.0f}", pace >= 30_000)


def show_split(rows: list[Row], console: Console) -> None:
    """Prints the phases of a step, and whether the goal is met."""
    table = _table("Phases, % of a step", (*PHASES, "other"))
    for row in rows:
        whole = sum(row.parts.values())
        table.add_row(row.name, *(f"{100 * row.parts[phase] / whole:.1f}" for phase in (*PHASES, "other")))
    console.print(table)
    console.print("data: waiting for images; lightly's loader also computes the views")
    if pick_device().type == "cuda":
        return
    for row in [row for row in rows if row.name.startswith("adaptive_ray")]:
        rest = 100 * (1 - (row.parts["forward"] + row.parts["backward"]) / sum(row.parts.values()))
        goal = f"{row.name}: all but forward and backward at most 10 % of a step"
        _verdict(console, goal, f"{rest:.1f} %", rest <= 10)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table("", title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _verdict(console: Console, goal: str, figure: str, met: bool) -> None:
    console.print(f"{'[green]met   [/]' if met else '[red]missed[/]'}  {goal}: {figure}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="small", help="small (16-32-64 channels, 3 blocks a stage) or resnet18")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, help="steps per repeat; default 4, on a GPU 40")
    parser.add_argument("--repeats", type=int, help="repeats of every row; default 7, on a GPU 3")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of this project")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="directory of cifar-10-batches-py")
    parser.add_argument("--lightly", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--lightly-workers", type=int, nargs="+", help="numbers to try; default 0 1 2, on a GPU 4 8 16")
    parser.add_argument("--profile", action="store_true", help="only print the slowest operators")
    parser.add_argument("--quick", action="store_true", help="a batch of 32, two repeats of one step")
    options = parser.parse_args()
    if options.quick:
        options.batch_size, options.steps, options.repeats = 32, 1, 2
    on_gpu = pick_device().type == "cuda"
    options.steps = options.steps or (40 if on_gpu else 4)
    options.repeats = options.repeats or (3 if on_gpu else 7)
    options.passes = 1 if on_gpu else 3  # of the split, and of lightly's numbers of workers; a GPU's clock is steady
    options.lightly_workers = options.lightly_workers or ([4, 8, 16] if on_gpu else [0, 1, 2])
    options.real = Images(options.data, 1).real
    if not options.real:
        print(f"no CIFAR-10 at {options.data}: the images are random")
    if options.profile:
        row = ours(options)[0 if on_gpu else 1]
        print(row.ask("profile"))
        row.close()
        return
    rows = implementations(options)
    facts = rows[0].ask("facts")
    peaks = []
    console = Console(width=120)
    for turn in range(options.repeats):
        peaks.append(rows[0].ask("peak"))
        for row in rows:
            row.seconds.append(row.ask("measure", options.steps))
            pace = f"{options.batch_size / row.seconds[-1]:,.0f} images/s"
            console.print(f"turn {turn + 1} of {options.repeats}, {row.name}: {pace}", style="dim", highlight=False)
    show(rows, options, {**facts, "peak": statistics.median(peaks)}, console)
    for row in rows:
        row.parts = row.ask("split", options.steps, options.passes)
        row.close()
    show_split(rows, console)


if __name__ == "__main__":
    main()
