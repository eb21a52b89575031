"""Finds the throughputs that earlier runs with the same settings and workers have measured."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.layout import Layout, Workers
from adaptive_ray.run_directory.directory import RunDirectory

#: Most runs that are read, newest first.
_RUNS = 50


def earlier_throughputs(config: ExperimentConfig, layout: Layout | None) -> dict[str, tuple[float, str]]:
    """Returns throughput, in images per second, and name of the newest run that has measured it, by candidate.

    Args:
        config: Runs in its ``runs_dir`` count if data, network and training are the same.
        layout: Runs count if their winner had the same workers; None: unknown, all of them count.
    """
    found: dict[str, tuple[float, str]] = {}
    files = sorted(config.runs_dir.glob("*/events.jsonl"), key=_modified, reverse=True)
    for file in files[:_RUNS]:
        with suppress(UserError, OSError, ValueError, KeyError, TypeError):  # unreadable, or of another version
            directory = RunDirectory.open(file.parent)
            if _speed_settings(directory.config()) != _speed_settings(config):
                continue
            workers = Layout.read(directory.read_json("layout.json")).winner
            if layout is not None and _devices(workers) != _devices(layout.winner):
                continue
            for line in file.read_text(encoding="utf-8").splitlines():
                if (event := json.loads(line))["event"] == "measure":
                    found.setdefault(event["candidate"], (float(event["throughput"]), directory.name))
    return found


def _speed_settings(config: ExperimentConfig) -> tuple[object, ...]:
    return config.dataset, config.simclr, config.accumulation, config.sample_weights


def _devices(workers: Workers) -> tuple[float, ...]:
    return workers.count, workers.cpus, workers.gpus


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
