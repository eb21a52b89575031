"""Reads and writes the files of a run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.loading import dump_config, load_config
from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.atomic_write import append_line, write_whole
from adaptive_ray.run_directory.lock import LOCK_FILE
from schedulers import Decision
from trainables.report import CURVE_COLUMNS, TrainingReport


class RunDirectory:
    """The directory ``runs_dir/name`` of a run. It is never overwritten; appended lines are flushed to disk.

    Files: ``config.yaml`` (with defaults), ``events.jsonl`` (events of the races, used to resume; see ``History``),
    ``reports.jsonl`` (all reports), ``decisions.jsonl`` (of the races), ``swaps.jsonl`` (decisions within a run),
    ``inputs.json`` (settings and data at the start), ``lock``, ``curves.json``, ``result.json``,
    ``encoder.safetensors`` and ``encoder.json``, ``neighbours.png``, ``weights.png`` (sample weights),
    ``clusters.json`` and ``clusters.html`` (dataset clusters), ``report.html``, ``layout.json`` (workers and their
    resources), ``mlflow.json`` (MLflow run IDs), and ``train/`` (checkpoints).
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @classmethod
    def create(cls, config: ExperimentConfig, name: str, *, resume: bool = False) -> RunDirectory:
        """Creates ``runs_dir/name`` and writes the configuration.

        An empty directory is used, and that of a run that has not started. With ``resume``, the directory of a
        started run is returned as well.

        Raises:
            UserError: The directory exists and cannot be used, or it cannot be created.
        """
        directory = cls(config.runs_dir / name)
        lock = directory.path / LOCK_FILE
        try:
            directory.path.mkdir(parents=True)
        except FileExistsError:
            if directory.started:
                if resume:
                    return directory
                raise UserError(
                    f"{directory.path} already exists; choose another --name, or resume it with --resume auto"
                ) from None
            if not lock.is_file() and not (directory.path.is_dir() and not any(directory.path.iterdir())):
                raise UserError(f"{directory.path} already exists and is not a run; choose another --name") from None
            return directory  # the configuration is replaced once it is locked
        except OSError as error:
            raise UserError(f"{directory.path} cannot be created: {error.strerror}") from None
        try:
            lock.touch()
            directory.write_config(config)
        except OSError as error:
            lock.unlink(missing_ok=True)
            directory.path.rmdir()
            raise UserError(f"{directory.path} cannot be written to: {error.strerror}") from None
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Opens the directory of an existing run. Raises ``UserError`` if it is none."""
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path}: not a run directory (config.yaml is missing)")
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def started(self) -> bool:
        """Whether candidates were entered into a race. Until then, the run can start again with other settings."""
        return any((self.path / name).exists() for name in ("events.jsonl", "reports.jsonl", "result.json"))

    def config(self) -> ExperimentConfig:
        """Reads ``config.yaml``."""
        return load_config(self.path / "config.yaml")

    def write_config(self, config: ExperimentConfig) -> None:
        """Writes ``config.yaml``."""
        write_whole(self.path / "config.yaml", dump_config(config))

    # --- appended files -----------------------------------------------------------------------------------------

    def append_report(self, candidate: str, report: TrainingReport) -> None:
        """Appends a report without its decision; ``checkpoint_path`` becomes relative: the directory may be moved."""
        entry = {"candidate": candidate, **report.to_dict()}
        entry.pop("decision", None)  # it is in swaps.jsonl
        if (path := entry.get("checkpoint_path")) and Path(path).is_relative_to(self.path):
            entry["checkpoint_path"] = str(Path(path).relative_to(self.path))
        self._append("reports.jsonl", entry)

    def append_decision(self, decision: Mapping[str, Any]) -> None:
        """Appends a decision of a race."""
        self._append("decisions.jsonl", decision)

    def write_decisions(self, decisions: Iterable[Mapping[str, Any]]) -> None:
        """Replaces ``decisions.jsonl``."""
        lines = (json.dumps(_plain(decision)) + "\n" for decision in decisions)
        write_whole(self.path / "decisions.jsonl", "".join(lines))

    def append_swap(self, decision: Mapping[str, Any]) -> None:
        """Appends a decision to keep or swap the candidate within a run."""
        self._append("swaps.jsonl", decision)

    def reports(self) -> dict[str, list[TrainingReport]]:
        """Reads the reports of each candidate in the order they were written; ``checkpoint_path`` is absolute.

        A candidate that resumes from an older checkpoint repeats reports. Of those with equal ``samples_seen``, the
        first was used for decisions and the last has the existing checkpoint.
        """
        reports: dict[str, list[TrainingReport]] = {}
        for entry in self._lines("reports.jsonl"):
            if path := entry.get("checkpoint_path"):
                entry["checkpoint_path"] = str(self.path / path)
            reports.setdefault(entry["candidate"], []).append(TrainingReport.from_dict(entry))
        return reports

    def reports_of(self, candidate: str) -> list[TrainingReport]:
        """Reads the reports of a candidate without repetitions."""
        return _first_time(self.reports().get(candidate, []))

    def decisions(self) -> list[dict[str, Any]]:
        """Reads all decisions of races."""
        return list(self._lines("decisions.jsonl"))

    def swaps(self) -> list[dict[str, Any]]:
        """Reads all decisions to keep or swap the candidate within a run, without repetitions."""
        return list({entry["samples"]: entry for entry in self._lines("swaps.jsonl")}.values())

    def _append(self, name: str, entry: Mapping[str, Any]) -> None:
        append_line(self.path / name, json.dumps(_plain(entry)))

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        file = self.path / name
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # truncated: the process was killed while writing

    # --- final files --------------------------------------------------------------------------------------------

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file."""
        write_whole(self.path / name, json.dumps(_plain(content), indent=1) + "\n")

    def read_json(self, name: str) -> Any:
        """Reads a JSON file. Raises ``UserError`` if it does not exist, as the run is not finished, or is corrupt."""
        file = self.path / name
        if not file.exists():
            raise UserError(
                f"{file} does not exist: the run is not finished; resume it with: adaptive-ray run --resume {self.path}"
            )
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file} is corrupt: {error}") from None

    def curves(self) -> dict[str, dict[str, Any]]:
        """Collects the reports of each candidate as columns: the content of ``curves.json``."""
        curves = {}
        for key, written in sorted(self.reports().items(), key=lambda item: item[1][0].candidate):
            reports = _first_time(written)
            columns = {
                column: [getattr(report, metric) for report in reports] for metric, column in CURVE_COLUMNS.items()
            }
            curves[key] = {"batch_size": written[0].batch_size, "accumulation": written[0].accumulation, **columns}
        return curves


def _first_time(reports: Iterable[TrainingReport]) -> list[TrainingReport]:
    """Leaves out reports that were repeated after a restart."""
    ahead: list[TrainingReport] = []
    for report in reports:
        if not ahead or report.samples_seen > ahead[-1].samples_seen:
            ahead.append(report)
    return ahead


def describe(decision: Decision) -> dict[str, Any]:
    """Converts a decision to an entry of ``decisions.jsonl``."""
    entry = dataclasses.asdict(decision)
    path = [[samples, *forecast] for samples, forecast in decision.path]
    return {"candidate": entry.pop("key"), **entry, "forecast": decision.forecast._asdict(), "path": path}


def _plain(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not support, with null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
