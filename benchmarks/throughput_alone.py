"""Compares the throughput that candidates measure before they train with the one that they then reach.

    python benchmarks/throughput_alone.py                     # quickstart, 64 and 256, all cores
    python benchmarks/throughput_alone.py --threads 1 --cpu   # on a machine that others use, too

The candidates take turns in one process. In each turn, one measures as it does before a race, and then trains for 2,000
images or more; both are repeated, so that slow changes of the machine's speed affect both. With ``--cpu`` the clock is
the CPU time of this process, which does not depend on other programs; it needs ``--threads 1``. Shown are medians, and
the ratio of each pair. Goal: the median ratio is within 5 % of 1.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from adaptive_ray.config.loading import load_config
from adaptive_ray.experiment.experiment import Experiment
from trainables.training.run import Run
from trainables.training.throughput import measure_throughput

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
#: Images of a training phase.
TRAINED = 2_000
#: Within this ratio to 1 lies the goal.
GOAL = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=QUICKSTART)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256], metavar="B")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as in adaptive-ray")
    parser.add_argument("--pairs", type=int, default=9, help="measurements of each candidate")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of wall time")
    options = parser.parse_args()
    if options.cpu and options.threads > 1:
        parser.error("--cpu needs --threads 1: threads that wait for each other use CPU time as well")
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.process_time if options.cpu else time.perf_counter
    seconds = 1.5 if device.type == "cuda" else 1.0

    experiment = Experiment(load_config(options.config, [*options.set, f"candidates={options.batch_sizes}"]))
    assert experiment.prepared is not None
    runs = {
        key: Run(settings, experiment.data.training, device) for key, settings in experiment.prepared.settings().items()
    }
    pairs: dict[str, list[tuple[float, float]]] = {key: [] for key in runs}
    for _ in range(options.pairs):
        for key, run in runs.items():
            measured = measure_throughput(run, seconds=seconds, clock=clock)
            before = run.state.samples
            started = clock()
            run.train_until(before + TRAINED)
            if device.type == "cuda":
                torch.cuda.synchronize()
            pairs[key].append((measured, (run.state.samples - before) / (clock() - started)))
    table = Table(title=f"images/s, {'CPU' if options.cpu else 'wall'} time, {device.type}, threads: {options.threads}")
    for title in ("batch size", "measured", "reached", "ratio", "of single pairs", f"goal: within {GOAL:.0%}"):
        table.add_column(title, justify="right")
    for key, each in pairs.items():
        ratios = [measured / reached for measured, reached in each]
        both = (f"{median(column):,.0f}" for column in zip(*each, strict=True))
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        met = "met" if abs(median(ratios) - 1) <= GOAL else "missed"
        table.add_row(key, *both, f"{median(ratios):.3f}", span, met)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
