"""Measures peak memory and time of the loss (forward and backward) and compares them with the dense loss.

    python benchmarks/loss_memory.py                     # up to B = 16,384: under two minutes on 2 cores
    python benchmarks/loss_memory.py --largest 65536

On a CPU, each case runs in its own process. Its memory is the increase of the high-water mark (VmHWM of
/proc/self/status) over the memory before the loss. On a GPU, torch measures it. If the dense loss does not fit into
memory, its memory is computed from the largest size that was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

GOAL = (65_536, 1.5)  # B, and the limit in GB for 128 dimensions
GB = 1e9


def dense(z_a: Any, z_b: Any, temperature: float) -> Any:
    """NT-Xent with the full matrix of similarities."""
    import torch
    import torch.nn.functional as F

    u = F.normalize(torch.cat([z_a, z_b]), dim=1)
    similarities = (u @ u.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(u), device=u.device).roll(len(z_a))
    return F.cross_entropy(similarities, partner)


def case(form: str, batch: int, dimensions: int) -> dict[str, float]:
    """Returns additional bytes and seconds of one forward and backward pass in this process."""
    import torch

    from trainables.simclr import nt_xent

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loss = {"streaming": nt_xent, "dense": dense}[form]

    def once(size: int) -> tuple[float, float]:
        torch.manual_seed(0)
        z_a, z_b = (torch.randn(size, dimensions, device=device, requires_grad=True) for _ in range(2))
        before = _start(device)
        started = time.perf_counter()
        loss(z_a, z_b, 0.5).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, _peak(device) - before

    once(64)  # warm-up
    seconds, extra = once(batch)
    times = [seconds]
    while sum(times) < 2 and len(times) < 25:
        times.append(once(batch)[0])
    return {"seconds": statistics.median(times), "extra": extra}


def _start(device: Any) -> float:
    """Resets the high-water mark and returns the current memory."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: Any) -> float:
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return 1024 * float(line.split()[1])


def free() -> float:
    """Returns the available bytes."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    return 1024 * float(line.split()[1])


def run(form: str, batch: int, dimensions: int) -> dict[str, float]:
    """Runs a case; on a CPU in a new process."""
    import torch

    if torch.cuda.is_available():
        return case(form, batch, dimensions)
    command = [sys.executable, __file__, "--case", form, "--largest", str(batch), "--dimensions", str(dimensions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=16_384, help="largest B; sizes grow by a factor of 4")
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--case", choices=("streaming", "dense"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(options.case, options.largest, options.dimensions)))
        return
    sizes = [options.largest]
    while sizes[0] // 4 >= 1024:
        sizes.insert(0, sizes[0] // 4)
    table = Table(title=f"NT-Xent, forward and backward, {options.dimensions} dimensions")
    for title in ("B", "streaming, GB", "seconds", "dense, GB", "seconds", "dense / streaming, seconds"):
        table.add_column(title, justify="right")
    matrices, slower = 4.0, []  # matrices of (2B)^2 float32 in the dense loss; measured below
    for size in sizes:
        ours, matrix = run("streaming", size, options.dimensions), 4.0 * (2 * size) ** 2
        row = [f"{size:,}", f"{ours['extra'] / GB:.3f}", f"{ours['seconds']:.3f}"]
        if 1.2 * matrices * matrix < free():
            theirs = run("dense", size, options.dimensions)
            matrices = theirs["extra"] / matrix
            ratio = theirs["seconds"] / ours["seconds"]
            slower += [f"{size:,}"] if ratio < 0.95 else []
            row += [f"{theirs['extra'] / GB:.3f}", f"{theirs['seconds']:.3f}", f"{ratio:.2f}"]
        else:
            row += [f"{matrices * matrix / GB:,.0f} (computed)", "-", "-"]
        table.add_row(*row)
    console = Console(width=120)
    console.print(table)
    console.print(f"the dense form holds {matrices:.1f} matrices of (2B)^2 float32 at once", highlight=False)
    import torch

    verdict(console, sizes[-1], ours["extra"] / GB, slower, options.dimensions, torch.cuda.is_available())


def verdict(console: Console, size: int, gigabytes: float, slower: list[str], dimensions: int, gpu: bool) -> None:
    """Prints whether the goals are met."""
    if (size, dimensions) == (GOAL[0], 128):
        met = "met   " if gigabytes <= GOAL[1] else "missed"
        console.print(f"{met}  B = {size:,} within {GOAL[1]} GB: {gigabytes:.3f} GB", highlight=False)
    else:
        console.print(f"the goal is about B = {GOAL[0]:,} with 128 dimensions: --largest {GOAL[0]}", highlight=False)
    text = f"slower than dense at B = {', '.join(slower)}" if slower else "never slower than dense"
    goal = ("missed  " if slower else "met     ") if gpu else "        "
    console.print(f"{goal}{text}{'' if gpu else '; the goal is about GPUs'}", highlight=False)


if __name__ == "__main__":
    main()
