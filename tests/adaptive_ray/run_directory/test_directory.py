"""The directory of a run: never overwritten; appended lines survive a crash."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.loading import load_config
from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.directory import RunDirectory, describe
from schedulers import Race
from trainables.report import CURVE_COLUMNS, TrainingReport

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return load_config(QUICKSTART, [f"runs_dir={tmp_path / 'deep' / 'runs'}"])


@pytest.fixture
def directory(config: ExperimentConfig) -> RunDirectory:
    return RunDirectory.create(config, "first")


def report(size: int, samples: int, **metrics: Any) -> TrainingReport:
    loss = {"reference_loss": 5.0 - samples / 1000}
    return TrainingReport(batch_size=size, samples_seen=samples, **{**loss, **metrics})


class TestCreate:
    def test_makes_it_and_writes_the_configuration(self, config: ExperimentConfig) -> None:
        directory = RunDirectory.create(config, "first")
        assert directory.path == config.runs_dir / "first"
        assert directory.name == "first"
        assert directory.config() == config
        assert sorted(file.name for file in directory.path.iterdir()) == ["config.yaml", "lock"]

    def test_an_existing_name_is_refused_and_left_untouched(self, config: ExperimentConfig) -> None:
        path = config.runs_dir / "taken"
        path.mkdir(parents=True)
        (path / "precious").write_text("data")
        with pytest.raises(UserError) as caught:
            RunDirectory.create(config, "taken")
        assert str(path) in str(caught.value)
        assert "--name" in str(caught.value)
        assert [(file.name, file.read_text()) for file in path.iterdir()] == [("precious", "data")]

    def test_an_existing_directory(self, config: ExperimentConfig, directory: RunDirectory) -> None:
        directory.append_report("64", report(64, 64))
        with pytest.raises(UserError, match=r"already exists.*--resume auto"):
            RunDirectory.create(config, "first")
        assert RunDirectory.create(config, "first", resume=True).path == directory.path
        assert len(directory.reports()["64"]) == 1

    @pytest.mark.parametrize(
        "left", [[], ["lock"], ["lock", ".config.yaml.new"], ["lock", "config.yaml", "mlflow.json"]]
    )
    def test_one_in_which_nothing_has_started_is_used(self, config: ExperimentConfig, left: list[str]) -> None:
        """A process that is killed leaves each of these."""
        path = config.runs_dir / "early"
        path.mkdir(parents=True)
        for name in left:
            (path / name).touch()
        assert not RunDirectory.create(config, "early").started

    def test_a_file_in_the_path(self, config: ExperimentConfig) -> None:
        config.runs_dir.parent.mkdir(parents=True)
        config.runs_dir.write_text("a file")
        with pytest.raises(UserError, match="cannot be created: Not a directory") as caught:
            RunDirectory.create(config, "first")
        assert "\n" not in str(caught.value)

    def test_a_relative_runs_dir(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        directory = RunDirectory.create(load_config(QUICKSTART), "first")
        assert directory.path == tmp_path / "runs" / "first"


class TestOpen:
    def test_an_existing_one(self, config: ExperimentConfig, directory: RunDirectory) -> None:
        opened = RunDirectory.open(directory.path)
        assert opened.path == directory.path
        assert opened.config() == config

    def test_by_a_relative_path(self, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(directory.path.parent)
        opened = RunDirectory.open(Path("first"))
        monkeypatch.chdir("/")
        assert opened.path == directory.path
        assert opened.name == "first"

    @pytest.mark.parametrize("kind", ["missing", "empty", "file"])
    def test_not_a_run_directory(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / kind
        if kind == "empty":
            path.mkdir()
        if kind == "file":
            path.write_text("")
        with pytest.raises(UserError, match=r"config\.yaml") as caught:
            RunDirectory.open(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("content", [b"seed: [1\n", b"\xff\xfe", b"- 1\n", b"seed: -3\n"])
    def test_a_corrupt_configuration(self, directory: RunDirectory, content: bytes) -> None:
        (directory.path / "config.yaml").write_bytes(content)
        with pytest.raises(UserError) as caught:
            RunDirectory.open(directory.path).config()
        assert str(directory.path / "config.yaml") in str(caught.value)
        assert "\n" not in str(caught.value)


class TestGrowingFiles:
    def test_appended_entries_are_read_in_order(self, directory: RunDirectory) -> None:
        for samples in (64, 128, 192):
            directory.append_report("64", report(64, samples, checkpoint_path="/some/where"))
        directory.append_decision({"candidate": "64", "state": "won"})
        again = RunDirectory.open(directory.path)
        assert [entry.samples_seen for entry in again.reports()["64"]] == [64, 128, 192]
        assert again.reports()["64"][0] == report(64, 64, checkpoint_path="/some/where")
        assert again.decisions() == [{"candidate": "64", "state": "won"}]

    def test_nothing_yet(self, directory: RunDirectory) -> None:
        assert not directory.reports()
        assert not directory.decisions()
        assert directory.curves() == {}

    def test_a_partial_last_line_is_ignored(self, directory: RunDirectory) -> None:
        directory.append_report("64", report(64, 64))
        directory.append_report("64", report(64, 128))
        file = directory.path / "reports.jsonl"
        whole = file.read_text()
        first = whole.splitlines(keepends=True)[0]
        for length in range(len(first), len(whole) - 1):  # killed anywhere within the second line
            file.write_text(whole[:length])
            assert [entry.samples_seen for entry in directory.reports()["64"]] == [64]

    def test_lines_after_a_partial_line_are_kept(self, directory: RunDirectory) -> None:
        """The process is killed during a write; the resumed run reports again."""
        directory.append_report("64", report(64, 64))
        with (directory.path / "reports.jsonl").open("a") as file:
            file.write('{"candidate": "64", "batch_si')
        resumed = RunDirectory.open(directory.path)
        resumed.append_report("64", report(64, 128))
        resumed.append_report("64", report(64, 192))
        assert [entry.samples_seen for entry in resumed.reports()["64"]] == [64, 128, 192]

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, float(np.float64("nan"))])
    def test_nan_and_infinity_become_null(self, directory: RunDirectory, number: float) -> None:
        directory.append_report("64", report(64, 64, reference_loss=number, rankme=2.0))
        line = (directory.path / "reports.jsonl").read_text()
        strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert strict["reference_loss"] is None
        assert strict["rankme"] == 2.0

    def test_nested_numbers_too(self, directory: RunDirectory) -> None:
        content = {"a": {"mean": math.nan}, "b": [1.5, math.inf, (math.nan, 2)], 3: True}
        directory.write_json("some.json", content)
        assert directory.read_json("some.json") == {"a": {"mean": None}, "b": [1.5, None, [None, 2]], "3": True}


class TestReadJson:
    def test_missing_means_unfinished(self, directory: RunDirectory) -> None:
        with pytest.raises(UserError, match="the run is not finished") as caught:
            directory.read_json("result.json")
        assert str(directory.path / "result.json") in str(caught.value)
        assert f"--resume {directory.path}" in str(caught.value)

    def test_corrupt(self, directory: RunDirectory) -> None:
        (directory.path / "result.json").write_text('{"chosen_batch')
        with pytest.raises(UserError, match=r"result\.json"):
            directory.read_json("result.json")


class TestCurves:
    def test_columns(self, directory: RunDirectory) -> None:
        directory.append_report("64", report(64, 64, seconds=1.5, train_loss=4.0, rankme=9.0, workers=2))
        directory.append_report("64", report(64, 128, seconds=2.5, train_loss=math.nan))
        directory.write_json("curves.json", directory.curves())
        curve = directory.read_json("curves.json")["64"]
        assert set(curve) == {"batch_size", "accumulation", *CURVE_COLUMNS.values()}
        assert curve["batch_size"] == 64
        assert curve["samples"] == [64, 128]
        assert curve["seconds"] == [1.5, 2.5]
        assert curve["reference_loss"] == [5.0 - 0.064, 5.0 - 0.128]
        assert curve["train_loss"] == [4.0, None]
        assert curve["rankme"] == [9.0, None]

    def test_ordered_by_batch_size_as_a_number(self, directory: RunDirectory) -> None:
        for size in (256, 32, 1024, 64):
            directory.append_report(str(size), report(size, size))
        assert list(directory.curves()) == ["32", "64", "256", "1024"]

    def test_with_accumulation_after_the_same_size_without(self, directory: RunDirectory) -> None:
        for key, size, accumulation in (("64x4", 64, 4), ("128", 128, 1), ("64", 64, 1), ("64x16", 64, 16)):
            directory.append_report(key, report(size, 64, accumulation=accumulation))
        assert list(directory.curves()) == ["64", "64x4", "64x16", "128"]

    def test_a_restarted_trial_repeats_itself(self, directory: RunDirectory) -> None:
        for samples, loss in ((64, 5.0), (128, 4.0), (192, 3.0), (128, 9.0), (192, 9.0), (256, 2.0)):
            directory.append_report("64", report(64, samples, reference_loss=loss))
            directory.append_report("128", report(128, samples, reference_loss=loss + 1))
        curves = directory.curves()
        assert curves["64"]["samples"] == curves["128"]["samples"] == [64, 128, 192, 256]
        assert curves["64"]["reference_loss"] == [5.0, 4.0, 3.0, 2.0]
        assert curves["128"]["reference_loss"] == [6.0, 5.0, 4.0, 3.0]


class TestDescribe:
    def test_a_decision_survives_json(self, directory: RunDirectory) -> None:
        race = Race(["64", "128"], budget=4000, window=400, prune_below=0)
        for step in range(1, 5):
            race.report("64", 100 * step, 5 * (100 * step) ** -0.2, seconds=float(step))
            race.report("128", 100 * step, 5 * (60 * step) ** -0.2, seconds=0.5 * step)
        standings = race.standings()
        for standing in standings:
            directory.append_decision(describe(standing))
        for entry, standing in zip(directory.decisions(), standings, strict=True):
            assert entry["candidate"] == standing.key
            assert "key" not in entry
            assert entry["state"] == standing.state.value
            assert entry["reason"] == standing.reason
            assert entry["samples"] == 400
            assert entry["forecast"] == {"mean": standing.forecast.mean, "std": standing.forecast.std}
            assert entry["probability_best"] == standing.probability_best
            assert standing.log_rate is not None
            assert entry["log_rate"] == list(standing.log_rate)
            assert entry["throughput"] == standing.throughput

    def test_a_decision_without_numbers(self, directory: RunDirectory) -> None:
        race = Race(["64", "128"], budget=4000, window=400)
        (decision,) = race.fail("64", "out of memory")[:1]
        directory.append_decision(describe(decision))
        (entry,) = directory.decisions()
        assert (entry["state"], entry["reason"]) == ("pruned", "out of memory")
        assert entry["loss"] is None
        assert entry["forecast"] == {"mean": None, "std": None}
        assert entry["throughput"] is None
