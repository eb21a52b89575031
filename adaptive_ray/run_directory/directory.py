"""The files of one run, and nothing else about it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptive_ray.config.experiment import ExperimentConfig, dump_config, load_config
from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.atomic_write import write_whole
from schedulers import Decision


class RunDirectory:
    """``runs_dir/name``. Created once, never overwritten; what is appended survives the death of the process.

    Files: ``config.yaml`` (resolved), ``events.jsonl`` (what happened in the races, from which a run is resumed;
    see ``History``), ``reports.jsonl`` (every report of every candidate), ``decisions.jsonl`` (of races),
    ``swaps.jsonl`` (about the loader inside a run), ``inputs.json`` (what it was started with), ``lock``,
    ``curves.json``, ``result.json``, ``encoder.safetensors`` and ``encoder.json``, ``neighbours.png``,
    ``weights.png`` (with weighted samples), ``clusters.json`` and ``clusters.html`` (with clusters),
    ``report.html``, ``layout.json`` (who trains on what), and ``train/`` with Ray's checkpoints.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @classmethod
    def create(cls, config: ExperimentConfig, name: str) -> RunDirectory:
        """Makes ``runs_dir/name`` and writes the configuration.

        Raises:
            UserError: It exists already, or cannot be made.
        """
        directory = cls(config.runs_dir / name)
        try:
            directory.path.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"{directory.path} exists already and is not overwritten; choose another --name") from None
        except OSError as error:
            raise UserError(f"{directory.path} cannot be made: {error.strerror}") from None
        try:
            write_whole(directory.path / "config.yaml", dump_config(config))
        except OSError as error:
            directory.path.rmdir()
            raise UserError(f"{directory.path} cannot be written to: {error.strerror}") from None
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            UserError: There is none.
        """
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path}: no run directory (it has no config.yaml)")
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.name

    def config(self) -> ExperimentConfig:
        file = self.path / "config.yaml"
        return load_config(file)

    # --- growing files ------------------------------------------------------------------------------------------

    def append_report(self, candidate: str, metrics: Mapping[str, Any]) -> None:
        """Writes a report to the disk. Its ``checkpoint_path`` is written relative to the run, which may be moved."""
        entry = {"candidate": candidate, **metrics}
        if (path := entry.get("checkpoint_path")) and Path(path).is_relative_to(self.path):
            entry["checkpoint_path"] = str(Path(path).relative_to(self.path))
        self._append("reports.jsonl", entry)

    def append_decision(self, decision: Mapping[str, Any]) -> None:
        self._append("decisions.jsonl", decision)

    def write_decisions(self, decisions: Iterable[Mapping[str, Any]]) -> None:
        """Replaces all decisions of races."""
        lines = (json.dumps(_plain(decision)) + "\n" for decision in decisions)
        write_whole(self.path / "decisions.jsonl", "".join(lines))

    def append_swap(self, decision: Mapping[str, Any]) -> None:
        self._append("swaps.jsonl", decision)

    def reports(self) -> list[dict[str, Any]]:
        """Every report, in the order in which they were written; ``checkpoint_path`` is absolute.

        A candidate that was resumed from an older checkpoint than its last one repeats reports; of those with the same
        ``samples_seen``, the first tells what was decided on and the last names the checkpoint.
        """
        reports = list(self._lines("reports.jsonl"))
        for report in reports:
            if path := report.get("checkpoint_path"):
                report["checkpoint_path"] = str(self.path / path)
        return reports

    def reports_of(self, candidate: str) -> list[dict[str, Any]]:
        """A candidate's reports without those that it repeated: one for each point of its curve."""
        reports: list[dict[str, Any]] = []
        for report in self.reports():
            ahead = not reports or report["samples_seen"] > reports[-1]["samples_seen"]
            if report["candidate"] == candidate and ahead:
                reports.append(report)
        return reports

    def decisions(self) -> list[dict[str, Any]]:
        return list(self._lines("decisions.jsonl"))

    def swaps(self) -> list[dict[str, Any]]:
        """Every decision about the loader inside the run, also those to keep it; a resumed run repeats none."""
        return list({entry["samples"]: entry for entry in self._lines("swaps.jsonl")}.values())

    def _append(self, name: str, entry: Mapping[str, Any]) -> None:
        with (self.path / name).open("a+b") as file:
            torn = False
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            file.write(("\n" * torn + json.dumps(_plain(entry)) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        file = self.path / name
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # the process died while it wrote this line

    # --- final files --------------------------------------------------------------------------------------------

    def write_json(self, name: str, content: Any) -> None:
        write_whole(self.path / name, json.dumps(_plain(content), indent=1) + "\n")

    def read_json(self, name: str) -> Any:
        """Raises:
        UserError: The file is not there: the run is not finished.
        """
        file = self.path / name
        if not file.exists():
            raise UserError(
                f"{file} does not exist: the run is not finished; continue it with: "
                f"adaptive-ray run --resume {self.path}"
            )
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}") from None

    def curves(self) -> dict[str, dict[str, Any]]:
        """``curves.json``'s content: per candidate how it forms updates and, point by point, the reports."""
        curves: dict[str, dict[str, Any]] = {}
        for report in self.reports():
            curve = curves.setdefault(
                report["candidate"],
                {
                    "batch_size": report["batch_size"],
                    "accumulation": report.get("accumulation", 1),
                    **{name: [] for name in CURVE_COLUMNS.values()},
                },
            )
            if curve["samples"] and report["samples_seen"] <= curve["samples"][-1]:
                continue  # a restarted trial repeats itself
            for metric, column in CURVE_COLUMNS.items():
                curve[column].append(report.get(metric))
        return dict(sorted(curves.items(), key=lambda item: (item[1]["batch_size"], item[1]["accumulation"])))


#: Reported metric -> its column in curves.json.
CURVE_COLUMNS = {
    "samples_seen": "samples",
    "batch_size": "batch_sizes",
    "accumulation": "accumulations",
    "seconds": "seconds",
    "reference_loss": "reference_loss",
    "train_loss": "train_loss",
    "rankme": "rankme",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "images_per_second": "images_per_second",
    "workers": "workers",
    "images_per_update": "images_per_update",
    "batches_per_update": "batches_per_update",
    "information": "information",
    "least_information": "least_information",
}


def describe(decision: Decision) -> dict[str, Any]:
    """A decision as an entry of ``decisions.jsonl``."""
    entry = dataclasses.asdict(decision)
    entry["candidate"] = entry.pop("key")
    entry["forecast"] = {"mean": decision.forecast.mean, "std": decision.forecast.std}
    return {"candidate": entry.pop("candidate"), **entry}


def _plain(value: Any) -> Any:
    """JSON knows no nan and no infinity: both become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
