"""Tracking with real MLflow: a temporary database and a local server."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy.engine import Engine
from sqlalchemy.event import listen, remove

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.loading import load_config
from adaptive_ray.errors import UserError
from adaptive_ray.experiment.mlflow_tracking import Tracker
from adaptive_ray.ray_cluster.signals import listening
from adaptive_ray.report.accuracies import ACCURACIES
from adaptive_ray.run_directory.directory import RunDirectory
from trainables.report import TrainingReport

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"
PASSWORD = "s3cr3t"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def configured(runs_dir: Path, *overrides: str) -> ExperimentConfig:
    return load_config(QUICKSTART, [f"runs_dir={runs_dir}", "candidates=[32, 64]", "race.window.epochs=2", *overrides])


def report(size: int, samples: int, **metrics: Any) -> TrainingReport:
    losses = {"reference_loss": 5 - samples / 1000, "train_loss": 6 - samples / 1000, "learning_rate": 0.003}
    place = {"seconds": samples / 100, "workers": 1, "checkpoint_path": "/some/where"}
    return TrainingReport(batch_size=size, samples_seen=samples, **{**losses, **place, **metrics})


RESULT = {
    "chosen_batch_size": 64,
    "chosen_accumulation": 1,
    "probe_accuracy": 0.91,
    "first_reference_loss": 4.9,
    "reference_loss": 4.8,
    "seconds": 12.5,
    "name": "text is no metric",
}


def track(tracker: Tracker, directory: RunDirectory) -> None:
    """A small race: 32 is pruned after two reports, 64 wins."""
    reports = []
    for samples in (64, 128, 192):
        for size in (32, 64):
            if size == 32 and samples == 192:
                tracker.pruned("32", "its probability of finishing best is 1.0%")
                continue
            entry = report(size, samples)
            directory.append_report(str(size), entry)
            tracker.report(str(size), entry)
            reports += [entry] if size == 64 else []
    tracker.finished("64", RESULT, reports)
    directory.write_json("result.json", RESULT)
    tracker.artifacts(directory, ["config.yaml", "result.json"])


def children_of(tracker: Tracker) -> list[Run]:
    """The runs of the candidates, read by another client."""
    runs = MlflowClient(tracking_uri=tracker.uri).search_runs([tracker.experiment_id])
    return [run for run in runs if run.data.tags.get(MLFLOW_PARENT_RUN_ID) == tracker.run_id]


def runs_of(tracker: Tracker) -> tuple[Run, dict[str, Run]]:
    """The parent run, and the runs of the candidates by batch size."""
    parent = MlflowClient(tracking_uri=tracker.uri).get_run(tracker.run_id)
    return parent, {run.data.params["batch_size"]: run for run in children_of(tracker)}


def statuses(tracker: Tracker) -> dict[str, str]:
    """Status of the runs of the candidates and of the parent run."""
    parent, children = runs_of(tracker)
    return {key: run.info.status for key, run in (children | {"parent": parent}).items()}


def known(directory: RunDirectory) -> dict[str, Any]:
    content: dict[str, Any] = directory.read_json("mlflow.json")
    return content


def curve(tracker: Tracker, run: Run, metric: str) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=tracker.uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tracker, RunDirectory]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = configured(tmp_path_factory.mktemp("tracked") / "runs")
        directory = RunDirectory.create(config, "first")
        tracker = Tracker(config, directory)
        track(tracker, directory)
        return tracker, directory


class TestDatabase:
    def test_the_page_shows_training_and_results(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        tracker, _ = tracked
        experiment = MlflowClient(tracking_uri=tracker.uri).get_experiment(tracker.experiment_id)
        assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"  # not a chat's traces
        parent, children = runs_of(tracker)
        assert (
            "**Batch size 64** was chosen from 32, 64; linear classifier 91.0 %, reference loss: 4.800"
            in parent.data.tags["mlflow.note.content"]
        )
        assert {run.data.tags["mlflow.source.name"] for run in (parent, *children.values())} == {"adaptive-ray"}

    def test_the_database_is_in_runs_dir(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        tracker, directory = tracked
        assert tracker.uri == f"sqlite:///{directory.path.parent / 'mlflow.db'}"
        assert (directory.path.parent / "mlflow.db").read_bytes().startswith(b"SQLite format 3")

    def test_a_parent_with_a_child_for_each_candidate(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        parent, children = runs_of(tracked[0])
        assert parent.info.run_name == "first"
        assert set(children) == {"32", "64"}
        assert {run.info.run_name for run in children.values()} == {"first/32", "first/64"}
        assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
        experiment = MlflowClient(tracking_uri=tracked[0].uri).get_experiment(tracked[0].experiment_id)
        assert experiment.name == "adaptive_ray"

    def test_accumulation_is_part_of_a_child_s_name(self, tmp_path: Path) -> None:
        config = configured(tmp_path / "runs", "candidates=[64, {batch_size: 64, accumulation: 4}]")
        directory = RunDirectory.create(config, "first")
        tracker = Tracker(config, directory)
        tracker.report("64x4", report(64, 256, accumulation=4))
        children = children_of(tracker)
        assert {run.info.run_name: run.data.params["accumulation"] for run in children} == {
            "first/64": "1",
            "first/64x4": "4",
        }
        (accumulating,) = [run for run in children if run.info.run_name == "first/64x4"]
        assert curve(tracker, accumulating, "accumulation") == [(256, 4)]

    def test_settings_are_the_parent_s_parameters(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        parent, _ = runs_of(tracked[0])
        assert parent.data.params["candidates"] == "[32, 64]"
        assert parent.data.params["simclr.optimizer.name"] == "adamw"
        assert parent.data.params["race.window.epochs"] == "2.0"
        assert not [name for name in parent.data.params if name.startswith("tracking")]

    def test_curves_are_over_samples(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        tracker, _ = tracked
        _, children = runs_of(tracker)
        assert curve(tracker, children["32"], "reference_loss") == [(64, 5 - 0.064), (128, 5 - 0.128)]
        steps = [(samples, 5 - samples / 1000) for samples in (64, 128, 192)]
        assert curve(tracker, children["64"], "reference_loss") == steps
        assert [step for step, _ in curve(tracker, children["64"], "train_loss")] == [64, 128, 192]

    def test_the_batch_size_is_a_curve_too(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        tracker, _ = tracked
        parent, children = runs_of(tracker)
        assert curve(tracker, children["32"], "batch_size") == [(64, 32), (128, 32)]
        assert curve(tracker, parent, "batch_size") == [(64, 64), (128, 64), (192, 64)]

    def test_the_parent_has_the_winner_s_curves_and_the_results(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        tracker, _ = tracked
        parent, children = runs_of(tracker)
        assert curve(tracker, parent, "reference_loss") == curve(tracker, children["64"], "reference_loss")
        assert parent.data.metrics["probe_accuracy"] == 0.91
        assert parent.data.metrics["chosen_batch_size"] == 64
        assert "name" not in parent.data.metrics

    def test_states(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        _, children = runs_of(tracked[0])
        assert children["64"].data.tags["state"] == "won"
        assert children["32"].data.tags["state"] == "pruned: its probability of finishing best is 1.0%"

    def test_a_pruned_candidate_that_races_again_is_running(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        tracker, _ = tracked
        tracker.racing("32", "forks from 64 after 128 samples")
        _, children = runs_of(tracker)
        assert children["32"].info.status == "RUNNING"
        assert children["32"].data.tags["state"] == "forks from 64 after 128 samples"
        tracker.pruned("32", "its probability of finishing best is 1.0%")
        _, children = runs_of(tracker)
        assert children["32"].info.status == "FINISHED"
        assert children["32"].data.tags["state"] == "pruned: its probability of finishing best is 1.0%"

    def test_artifacts_are_beside_the_database(self, tracked: tuple[Tracker, RunDirectory], tmp_path: Path) -> None:
        tracker, directory = tracked
        client = MlflowClient(tracking_uri=tracker.uri)
        assert {entry.path for entry in client.list_artifacts(tracker.run_id)} == {"config.yaml", "result.json"}
        copy = Path(client.download_artifacts(tracker.run_id, "config.yaml", str(tmp_path)))
        assert copy.read_text() == (directory.path / "config.yaml").read_text()
        stored = [path for path in (directory.path.parent / "mlartifacts").rglob("*") if path.is_file()]
        assert {path.name for path in stored} == {"config.yaml", "result.json"}

    def test_a_second_tracker_continues_the_same_runs(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        _, first = tracked
        config = load_config(first.path / "config.yaml")
        directory = RunDirectory.create(config, "second")
        before = Tracker(config, directory)
        before.report("32", report(32, 64))
        after = Tracker(RunDirectory.open(directory.path).config(), RunDirectory.open(directory.path))
        assert (after.run_id, after.experiment_id) == (before.run_id, before.experiment_id)
        after.report("32", report(32, 128))
        _, children = runs_of(after)
        assert set(children) == {"32", "64"}
        assert [step for step, _ in curve(after, children["32"], "reference_loss")] == [64, 128]

    def test_a_resumed_run_is_found_from_another_folder(
        self, tracked: tuple[Tracker, RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """runs_dir is relative by default, and --resume accepts an absolute path."""
        home = tracked[1].path.parent.parent  # holds runs/ with a database already
        monkeypatch.chdir(home)
        config = load_config(QUICKSTART, ["candidates=[32, 64]"])
        directory = RunDirectory.create(config, "elsewhere")
        before = Tracker(config, directory)
        monkeypatch.chdir(tmp_path)
        opened = RunDirectory.open(directory.path)
        assert Tracker(opened.config(), opened).uri == before.uri

    def test_failed(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        config = load_config(tracked[1].path / "config.yaml")
        tracker = Tracker(config, RunDirectory.create(config, "third"))
        tracker.end("FAILED")
        parent, children = runs_of(tracker)
        assert {run.info.status for run in (parent, *children.values())} == {"FAILED"}

    def test_a_result_without_probes_says_why(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        config = load_config(tracked[1].path / "config.yaml")
        tracker = Tracker(config, RunDirectory.create(config, "unlabelled"))
        why = dict.fromkeys(ACCURACIES, "the images have no labels")
        tracker.finished("64", RESULT | dict.fromkeys(ACCURACIES) | {"unavailable": why}, [])
        parent, _ = runs_of(tracker)
        note = parent.data.tags["mlflow.note.content"]
        assert "linear classifier -, reference loss: 4.800 (first report: 4.900)" in note
        assert note.endswith("\n\n- probes: the images have no labels")
        assert not set(ACCURACIES) & set(parent.data.metrics)
        assert parent.data.metrics["first_reference_loss"] == 4.9
        tracker.end("FINISHED")

    def test_an_interruption_ends_open_runs_and_a_resume_reopens_them(
        self, tracked: tuple[Tracker, RunDirectory]
    ) -> None:
        config = load_config(tracked[1].path / "config.yaml")
        directory = RunDirectory.create(config, "interrupted")
        before = Tracker(config, directory)
        before.pruned("32", "its probability of finishing best is 1.0%")
        before.report("64", report(64, 64))
        before.end("KILLED")
        assert statuses(before) == {"32": "FINISHED", "64": "KILLED", "parent": "KILLED"}
        after = Tracker(config, directory)
        assert statuses(after) == {"32": "FINISHED", "64": "KILLED", "parent": "RUNNING"}
        after.report("64", report(64, 128))
        assert statuses(after) == {"32": "FINISHED", "64": "RUNNING", "parent": "RUNNING"}
        after.finished("64", RESULT, [])
        after.artifacts(directory, [])
        assert set(statuses(after).values()) == {"FINISHED"}

    def test_a_signal_in_a_transaction_waits_for_its_end(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        """An interrupted transaction would keep the database locked for half a minute."""
        config = load_config(tracked[1].path / "config.yaml")
        tracker = Tracker(config, RunDirectory.create(config, "signalled"))
        sent = []

        def interrupt(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if statement.startswith("INSERT INTO metrics") and not sent:
                sent.append(statement)
                os.kill(os.getpid(), signal.SIGINT)

        listen(Engine, "after_cursor_execute", interrupt)
        try:
            with listening(), pytest.raises(KeyboardInterrupt):
                tracker.report("64", report(64, 64))
        finally:
            remove(Engine, "after_cursor_execute", interrupt)
        assert sent
        assert curve(tracker, runs_of(tracker)[1]["64"], "reference_loss") == [(64, pytest.approx(5 - 0.064))]
        tracker.end("KILLED")
        assert set(statuses(tracker).values()) == {"KILLED"}

    def test_open_runs_of_an_earlier_session_are_finished_with_the_run(
        self, tracked: tuple[Tracker, RunDirectory]
    ) -> None:
        """A candidate that was pruned while MLflow's disk was full does not report again."""
        config = load_config(tracked[1].path / "config.yaml")
        directory = RunDirectory.create(config, "broken-off")
        Tracker(config, directory).end("FAILED")
        after = Tracker(config, directory)
        after.report("64", report(64, 64))
        after.finished("64", RESULT, [])
        assert statuses(after) == {"32": "FAILED", "64": "FINISHED", "parent": "RUNNING"}
        after.artifacts(directory, [])
        assert set(statuses(after).values()) == {"FINISHED"}

    def test_candidates_without_their_own_trial_end_with_the_run(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        """Candidates that rotate within one run."""
        config = load_config(tracked[1].path / "config.yaml")
        directory = RunDirectory.create(config, "turns")
        tracker = Tracker(config, directory)
        tracker.finished("64", RESULT, [])
        assert statuses(tracker)["32"] == "RUNNING"
        tracker.artifacts(directory, [])
        assert set(statuses(tracker).values()) == {"FINISHED"}

    def test_a_run_missing_in_mlflow_is_recreated_with_its_reports(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        """For example after the run was moved to another machine, or deleted in MLflow."""
        config = load_config(tracked[1].path / "config.yaml")
        directory = RunDirectory.create(config, "moved")
        before = Tracker(config, directory)
        directory.append_report("64", report(64, 64, images_per_second=900.0))
        directory.append_report("64", report(64, 64, images_per_second=800.0))  # repeated after a resume
        client = MlflowClient(tracking_uri=before.uri)
        client.delete_run(before.run_id)
        after = Tracker(config, directory)
        assert after.run_id != before.run_id
        _, children = runs_of(after)
        assert [step for step, _ in curve(after, children["64"], "reference_loss")] == [64]
        assert curve(after, children["64"], "images_per_second") == [(64, 900.0)]
        assert directory.read_json("mlflow.json")["parent"] == after.run_id
        lost = {name: "0" * 32 if name == "parent" else entry for name, entry in known(directory).items()}
        directory.write_json("mlflow.json", lost)
        assert Tracker(config, directory).run_id not in ("0" * 32, after.run_id)

    def test_a_copy_of_another_name_has_its_own_runs(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        config = load_config(tracked[1].path / "config.yaml")
        directory = RunDirectory.create(config, "original")
        original = Tracker(config, directory)
        directory.append_report("64", report(64, 64))
        copy = RunDirectory.open(shutil.copytree(directory.path, directory.path.with_name("copy")))
        copied = Tracker(config, copy)
        assert copied.run_id != original.run_id
        parent, children = runs_of(copied)
        assert parent.info.run_name == "copy"
        assert [step for step, _ in curve(copied, children["64"], "reference_loss")] == [64]
        assert Tracker(config, copy).run_id == copied.run_id
        assert Tracker(config, directory).run_id == original.run_id

    def test_a_deleted_experiment_is_reported(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        config = load_config(tracked[1].path / "config.yaml", ["tracking.experiment=gone"])
        directory = RunDirectory.create(config, "of-the-deleted")
        tracker = Tracker(config, directory)
        client = MlflowClient(tracking_uri=tracker.uri)
        client.delete_experiment(tracker.experiment_id)
        with pytest.raises(UserError, match="'gone': deleted in MLflow") as caught:
            Tracker(config, directory)
        text = str(caught.value)
        assert "tracking.experiment=NAME" in text
        assert "\n" not in text
        command = text.partition("restore it with: ")[2].partition(";")[0]
        setting, mlflow, *arguments = command.split()
        name, _, uri = setting.partition("=")
        done = subprocess.run(
            [Path(sys.executable).with_name(mlflow), *arguments],
            env=os.environ | {name: uri}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert client.get_experiment(tracker.experiment_id).lifecycle_stage == "active"

    def test_missing_metrics_are_left_out(self, tracked: tuple[Tracker, RunDirectory]) -> None:
        config = load_config(tracked[1].path / "config.yaml")
        tracker = Tracker(config, RunDirectory.create(config, "fourth"))
        tracker.report("32", report(32, 64))
        _, children = runs_of(tracker)
        assert "information" not in children["32"].data.metrics
        assert children["32"].data.metrics["reference_loss"] == 5 - 0.064

    def test_the_tracking_uri_is_read_from_the_environment(
        self, tracked: tuple[Tracker, RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked[0].uri)
        config = configured(tmp_path / "other" / "runs")
        tracker = Tracker(config, RunDirectory.create(config, "fifth"))
        assert tracker.uri == tracked[0].uri
        assert not (tmp_path / "other" / "runs" / "mlflow.db").exists()

    def test_a_corrupt_database(self, tmp_path: Path) -> None:
        config = configured(tmp_path)
        directory = RunDirectory.create(config, "first")
        (tmp_path / "mlflow.db").write_text("this is no database, but a text of some length" * 50)
        with pytest.raises(UserError, match=r"mlflow\.db") as caught:
            Tracker(config, directory)
        assert "\n" not in str(caught.value)


#: Opens a tracker as soon as a file appears, so that several processes do so at the same moment.
AT_THE_SAME_MOMENT = """
import pathlib, sys, time
from adaptive_ray.config.loading import load_config
from adaptive_ray.run_directory.directory import RunDirectory
from adaptive_ray.experiment.mlflow_tracking import Tracker
config = load_config(pathlib.Path(sys.argv[1]), sys.argv[3:])
directory = RunDirectory.create(config, sys.argv[2])
(directory.path / "ready").touch()
while not (directory.path.parent / "go").exists():
    time.sleep(0.001)
Tracker(config, directory).end("FINISHED")
"""


@pytest.mark.slow
def test_runs_that_start_at_the_same_moment_share_a_new_database(tmp_path: Path) -> None:
    names, settings = ("one", "two"), [f"runs_dir={tmp_path}", "candidates=[32, 64]"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", AT_THE_SAME_MOMENT, QUICKSTART, name, *settings],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for name in names
    ]  # fmt: skip
    deadline = time.monotonic() + 120
    while not all((tmp_path / name / "ready").exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (tmp_path / "go").touch()
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "adaptive_ray"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs if "/" not in run.info.run_name} == set(names)
    assert {run.info.status for run in runs} == {"FINISHED"}


class TestUnreachable:
    def complaint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> str:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # a configuration may hold no password
        config = configured(tmp_path)
        directory = RunDirectory.create(config, "first")
        started = time.monotonic()
        with pytest.raises(UserError) as caught:
            Tracker(config, directory)
        assert time.monotonic() - started < 20
        assert not (directory.path / "mlflow.json").exists()
        text = str(caught.value)
        assert "\n" not in text
        return text

    def test_an_unavailable_server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = self.complaint(tmp_path, monkeypatch, "http://127.0.0.1:9")
        assert "MLflow server is unavailable at http://127.0.0.1:9:" in text

    @pytest.mark.slow
    def test_an_unavailable_server_is_reported_soon(self, tmp_path: Path) -> None:
        """With MLflow's default retries, each call takes four minutes."""
        code = (
            "import sys, pathlib\n"
            "from adaptive_ray.config.loading import load_config\n"
            "from adaptive_ray.run_directory.directory import RunDirectory\n"
            "from adaptive_ray.experiment.mlflow_tracking import Tracker\n"
            "config = load_config(pathlib.Path(sys.argv[1]), sys.argv[2:])\n"
            "Tracker(config, RunDirectory.create(config, 'first'))\n"
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_HTTP_REQUEST")}
        settings = [f"runs_dir={tmp_path}", "tracking.uri=http://127.0.0.1:9"]
        done = subprocess.run(
            [sys.executable, "-c", code, QUICKSTART, *settings],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert "MLflow server is unavailable at http://127.0.0.1:9" in done.stderr

    @pytest.mark.parametrize("uri", [f"http://me:{PASSWORD}@127.0.0.1:9", f"nonsense://me:{PASSWORD}@127.0.0.1:9/x"])
    def test_a_password_is_not_shown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
        text = self.complaint(tmp_path, monkeypatch, uri)
        assert "127.0.0.1:9" in text
        assert PASSWORD not in text

    def test_a_database_without_driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = self.complaint(tmp_path, monkeypatch, f"mysql+cymysql://me:{PASSWORD}@127.0.0.1:9/db")
        assert "127.0.0.1:9" in text
        assert PASSWORD not in text


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A local server on a free port; its process group is killed on exit."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.3)
        yield port, process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(30)


@pytest.mark.slow
def test_a_server(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Metrics and artifacts are logged; after the server died, the run continues with one warning."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # a server on a loaded machine is slow
    with mlflow_server(tmp_path_factory.mktemp("server")) as (port, process):
        uri = f"http://me:{PASSWORD}@127.0.0.1:{port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # a configuration may hold no password
        config = configured(tmp_path, "tracking.experiment=elsewhere")
        directory = RunDirectory.create(config, "first")
        tracker = Tracker(config, directory)
        track(tracker, directory)

        parent, children = runs_of(tracker)
        assert children["64"].data.tags["state"] == "won"
        assert [step for step, _ in curve(tracker, children["32"], "reference_loss")] == [64, 128]
        assert parent.data.metrics["probe_accuracy"] == 0.91
        client = MlflowClient(tracking_uri=uri)
        assert client.get_experiment_by_name("elsewhere").experiment_id == tracker.experiment_id
        copy = Path(client.download_artifacts(tracker.run_id, "result.json", str(tmp_path)))
        assert copy.read_text() == (directory.path / "result.json").read_text()
        assert not (tmp_path / "mlflow.db").exists()

        stop(process)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="adaptive_ray"):
            for samples in (256, 320):
                tracker.report("64", report(64, samples))
            tracker.artifacts(directory, ["result.json"])
        said = [record.getMessage() for record in caplog.records if record.name.startswith("adaptive_ray")]
        assert len(said) == 1  # the first of them all
        assert f"http://127.0.0.1:{port} is unavailable" in said[0]
        assert PASSWORD not in said[0]
        printed = capfd.readouterr()
        assert PASSWORD not in printed.out + printed.err
