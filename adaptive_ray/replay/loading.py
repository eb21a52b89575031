"""Loads recorded runs from files.

A ``*.json`` file is one run (``benchmarks/record_curves.py``), a line of a ``*.jsonl`` file is one run as well
(``benchmarks/record_scenarios.py``). The runs of the latter shared a device, so their seconds are replaced by those of
named hardware (``hardware``).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from pydantic import ValidationError

from adaptive_ray.errors import UserError
from adaptive_ray.replay.hardware import DEFAULT_HARDWARE, HARDWARE, RECORDED
from adaptive_ray.replay.recordings import Recording, Sweep

#: The recordings of a sweep may differ in length by this factor, because the last batch is complete.
_SAME_LENGTH = 1.2


def load_sweeps(directory: Path, hardware: str | None = None) -> list[Sweep]:
    """Loads every ``*.json`` and ``*.jsonl`` file below a directory.

    Args:
        directory: That of the recordings.
        hardware: A key of ``HARDWARE``, whose throughputs give the seconds, or ``recorded``: those of the recordings.
            None: the recorded seconds of ``*.json`` files, and ``DEFAULT_HARDWARE`` for ``*.jsonl`` files.

    Raises:
        UserError: The hardware is unknown, there is no file, one is not a recording, a run was recorded twice, the runs
            of a sweep have different lengths, or no sweep has two candidates.
    """
    if hardware not in (None, RECORDED, *HARDWARE):
        raise UserError(f"--hardware {hardware}: unknown; use {', '.join((RECORDED, *HARDWARE))}")
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give one with recorded runs")
    sweeps: dict[tuple[str, str, str, int], list[tuple[str, Recording]]] = {}
    for file in sorted(file for file in directory.rglob("*.json*") if file.suffix in (".json", ".jsonl")):
        source = hardware or (DEFAULT_HARDWARE if file.suffix == ".jsonl" else RECORDED)
        for run in _read(file):
            identity = (run.scenario, run.dataset, run.learning_rate_rule, run.seed)
            sweeps.setdefault(identity, []).append((source, _timed(run, source)))
    if not sweeps:
        raise UserError(
            f"{directory} contains no recorded runs (*.json, *.jsonl); record some with benchmarks/record_scenarios.py"
        )
    whole = []
    for identity, members in sorted(sweeps.items()):
        sweep = Sweep(
            *identity, tuple(sorted((run for _, run in members), key=lambda run: run.candidate)), members[0][0]
        )
        _check_comparable(directory, sweep)
        if len(sweep.runs) > 1:
            whole.append(sweep)
    if not whole:
        raise UserError(
            f"{directory}: no scenario, data set, rule and seed has two batch sizes, so there is no choice to replay"
        )
    return whole


def _check_comparable(directory: Path, sweep: Sweep) -> None:
    key, count = Counter(run.key for run in sweep.runs).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{directory}: {count} recordings of {sweep.dataset}, rule {sweep.learning_rate_rule}, seed {sweep.seed}, "
            f"batch {key}; keep one"
        )
    short, long = (best(sweep.runs, key=lambda run: run.samples[-1]) for best in (min, max))
    if long.samples[-1] > _SAME_LENGTH * short.samples[-1]:
        raise UserError(
            f"{directory}: {sweep}: batch {short.key} ends after {short.samples[-1]:,.0f} samples, batch {long.key} "
            f"after {long.samples[-1]:,.0f}; record all candidates with the same budget, or leave one out"
        )


def _timed(run: Recording, hardware: str) -> Recording:
    if hardware == RECORDED:
        return run
    throughput = HARDWARE[hardware].images_per_second(run.candidate)
    return run.model_copy(update={"seconds": [samples / throughput for samples in run.samples]})


def _read(file: Path) -> list[Recording]:
    try:
        text = file.read_text(encoding="utf-8")
        lines = [text] if file.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    runs = []
    for number, line in enumerate(lines, 1):
        place = f"{file}, line {number}" if file.suffix == ".jsonl" else str(file)
        try:
            runs.append(Recording.model_validate(json.loads(line)))
        except json.JSONDecodeError as error:
            raise UserError(f"{place} cannot be read: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            entry, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            raise UserError(f"{place} is not a recorded run: {f'{entry}: ' if entry else ''}{message}") from None
    return runs
