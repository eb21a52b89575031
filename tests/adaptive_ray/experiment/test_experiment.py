"""End-to-end runs of the command line: races of Ray Train runs on real digits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from adaptive_ray import load_encoder
from adaptive_ray.run_directory.directory import RunDirectory
from schedulers import FORECASTERS, Race
from tests.adaptive_ray.processes import commands, descendants, kill, left_of, stacks
from trainables.training.checkpoint import CHECKPOINT_FILE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[3]
#: The quickstart, shorter: digits can be learnt by 8 channels in a few thousand samples.
SMALL = [
    "--set",
    "candidates=[64, 256]",
    "--set",
    "budget.samples=6144",
    "--set",
    "race.window.samples=2048",
    "--set",
    "race.prune_below=0",
    "--set",
    "race.tolerance=0",  # no probability depends on the throughput
    "--set",
    "simclr.encoder.width=8",
    "--set",
    "trial.cpus_per_worker=1",  # two threads compute such small steps slower than one
    "--set",
    "dataset.limit=1536",
    "--set",
    "evaluation.every.samples=1024",
]
#: The winner may swap, but does not.
READY_TO_SWAP = ["--set", "swap.enabled=true", "--set", "swap.threshold=50", "--set", "winner.workers=2"]


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_TRAIN_")}
    return subprocess.Popen(
        [sys.executable, "-m", "adaptive_ray", *arguments],
        cwd=REPOSITORY,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_files: Path) -> tuple[RunDirectory, str]:
    """A run that is interrupted in the race and resumed: its directory and the output after the resume."""
    runs = tmp_path_factory.mktemp("runs")
    arguments = [*SMALL, *READY_TO_SWAP, "--runs-dir", str(runs), "--name", "digits"]
    first = start("run", "configs/quickstart.yaml", *arguments, RAY_TMPDIR=str(ray_files))
    assert first.stdout is not None
    for line in first.stdout:
        if "batch size" in line and "samples, reference loss" in line:
            break
    started = descendants(first.pid)
    titles = " ".join(commands(started))
    assert "ray::RayTrainWorker" in titles
    assert "ray::PreemptionWatcher" not in titles  # only clusters that are joined lose nodes by announcement
    assert len(list(ray_files.glob("ar-*/ray/session_2*"))) == 1
    stopped = time.monotonic()
    first.send_signal(signal.SIGTERM)
    busy = ""
    while first.poll() is None and time.monotonic() - stopped < 60:
        time.sleep(0.2)
        first.send_signal(signal.SIGINT)  # which changes nothing
        if time.monotonic() - stopped > 25 and not busy:
            busy = stacks(first.pid)
    _, errors = first.communicate(timeout=10)
    assert time.monotonic() - stopped < 30, busy  # 4 on a machine that does nothing else
    assert first.returncode == 143, errors
    client = MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "adaptive_ray"]
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"KILLED"}
    directory = runs / "digits"
    assert f"adaptive-ray run --resume {directory}" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    assert left_of(started, within=20) == []
    assert list(ray_files.iterdir()) == []

    second = start("run", "--resume", str(directory))
    output, errors = second.communicate(timeout=280)
    assert second.returncode == 0, errors
    return RunDirectory.open(directory), output


def test_the_result_holds_the_choice_and_the_encoder_is_trained(finished: tuple[RunDirectory, str]) -> None:
    directory, output = finished
    result = directory.read_json("result.json")
    assert result["chosen_batch_size"] in (64, 256)
    assert result["probe_accuracy"] > result["untrained_probe_accuracy"] + 0.05
    assert result["knn_accuracy"] > result["untrained_knn_accuracy"] + 0.05
    assert result["knn200_accuracy"] > result["untrained_knn200_accuracy"]
    assert not any(name.endswith("_top5_accuracy") for name in result)  # ten classes
    assert result["unavailable"] == {}
    assert 0 < result["explore_fraction"] <= 2048 / 6144
    assert result["samples_seen"] >= 6144
    assert result["seconds"] > 0
    for text in (
        "Ray dashboard: http://127.0.0.1:",
        "200 nearest neighbours",
        "reason",
        f"chosen batch size: {result['chosen_batch_size']}",
        "exploration: ",
        str(directory.path),
    ):
        assert text in output


def test_curves_continue_after_interruption_and_promotion(finished: tuple[RunDirectory, str]) -> None:
    directory, _ = finished
    curves, result = directory.read_json("curves.json"), directory.read_json("result.json")
    assert set(curves) == {"64", "256"}
    winner = curves[str(result["chosen_batch_size"])]
    steps = [b - a for a, b in zip(winner["samples"], winner["samples"][1:], strict=False)]
    assert set(steps) == {steps[0]}  # one grid, nothing repeated and nothing left out
    assert winner["reference_loss"][-1] < winner["reference_loss"][0]
    for curve in curves.values():
        before = [0, *curve["samples"]]
        due = [b // 1024 > a // 1024 or b >= 6144 for a, b in zip(before, curve["samples"], strict=False)]
        assert [value is not None for value in curve["online_knn_accuracy"]] == due
    assert winner["online_knn_accuracy"][-1] > 0.4  # chance is 0.1
    assert "Accuracy during training" in (directory.path / "report.html").read_text()
    jumps = [b - a for a, b in zip(winner["reference_loss"], winner["reference_loss"][1:], strict=False)]
    assert max(jumps) < 0.2
    assert (winner["workers"][0], winner["workers"][-1]) == (1, 2)  # as configured for the winner
    # All candidates were measured alone before the race, once.
    assert all(len(set(curve["images_per_second_alone"])) == 1 for curve in curves.values())
    decided = {entry["candidate"]: entry["throughput_alone"] for entry in directory.decisions()}
    assert decided == {key: curve["images_per_second_alone"][0] for key, curve in curves.items()}


def test_swaps_use_rates_and_throughputs_of_the_race(finished: tuple[RunDirectory, str]) -> None:
    directory, _ = finished
    winner = directory.read_json("result.json")["winner"]
    last = directory.reports()[winner][-1]
    checkpoint = torch.load(Path(str(last.checkpoint_path)) / CHECKPOINT_FILE, weights_only=True)
    settings = json.loads(checkpoint["swapping"])["settings"]
    found = {entry["candidate"]: entry["log_rate"] for entry in directory.decisions() if entry["state"] != "waiting"}
    assert settings["rates"] == found
    assert set(settings["throughputs"]) == {"64", "256"}
    decided = directory.swaps()
    assert decided
    assert {(swap["action"], swap["chosen"]) for swap in decided} == {("keep", winner)}
    (won,) = [entry["samples"] for entry in directory.decisions() if entry["state"] == "won"]
    assert decided[0]["samples"] > won


def test_decisions_carry_their_numbers_and_every_forecaster_can_be_replayed(finished: tuple[RunDirectory, str]) -> None:
    directory, _ = finished
    decisions = directory.decisions()
    last = {entry["candidate"]: entry for entry in decisions}
    assert sorted(entry["state"] for entry in last.values()) == ["pruned", "won"]
    for entry in last.values():
        assert entry["reason"]
        assert entry["forecast"]["mean"] > 0
        assert entry["samples"] <= 2048
    curves: dict[str, Any] = directory.read_json("curves.json")
    for name, forecaster in FORECASTERS.items():
        race = Race(curves, budget=6144, window=2048, rule="forecast", forecaster=forecaster(), prune_below=0)
        for key, curve in curves.items():
            for samples, loss in zip(curve["samples"], curve["reference_loss"], strict=True):
                race.report(key, samples, loss)
            if not race.over:
                race.complete(key)
        assert race.winner in curves, name


def test_the_encoder_loads_and_embeds(finished: tuple[RunDirectory, str]) -> None:
    directory, _ = finished
    encoder = load_encoder(directory.path)
    assert encoder.embed(torch.zeros(3, 1, 28, 28, dtype=torch.uint8)).shape == (3, 32)
    assert json.loads((directory.path / "encoder.json").read_text())["dataset"] == "mnist5k"


def test_mlflow_holds_a_parent_and_a_run_per_candidate(finished: tuple[RunDirectory, str]) -> None:
    directory, _ = finished
    client = MlflowClient(tracking_uri=f"sqlite:///{directory.path.parent / 'mlflow.db'}")
    result = directory.read_json("result.json")
    (experiment,) = [e for e in client.search_experiments() if e.name == "adaptive_ray"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.metrics["chosen_batch_size"] == result["chosen_batch_size"]
    assert parent.data.metrics["probe_accuracy"] == pytest.approx(result["probe_accuracy"])
    accuracies, seconds = (
        client.get_metric_history(parent.info.run_id, name) for name in ("online_knn_accuracy", "seconds")
    )
    assert accuracies[-1].value == directory.read_json("curves.json")[result["winner"]]["online_knn_accuracy"][-1]
    assert {point.step for point in accuracies} <= {point.step for point in seconds}
    history = client.get_metric_history(parent.info.run_id, "batch_size")
    assert {point.value for point in history} == {result["chosen_batch_size"]}
    assert max(point.step for point in history) >= 6144
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "encoder.safetensors", "decisions.jsonl"} <= names


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, str, str]:
    """The same run, but in the race a worker and a trial are killed, and in the winner's training every
    worker until it gives up; then it is retried, and a worker is killed once more.

    Returns:
        Its directory, the first session's error, and what the second printed.
    """
    runs = tmp_path_factory.mktemp("faulty")
    run = ["run", "configs/quickstart.yaml", *SMALL, *READY_TO_SWAP, "--set", "tracking.enabled=false"]
    first = start(*run, "--runs-dir", str(runs), "--name", "digits")
    assert first.stdout is not None
    to_kill = ["ray::RayTrainWorker", "ray::ImplicitFunc.train"]
    for line in first.stdout:
        if "samples, reference loss" in line and to_kill:
            kill(first.pid, to_kill.pop(0))
            next(line for line in first.stdout if " restarted after " in line)
        elif " won: " in line:
            break
    assert not to_kill
    next(line for line in first.stdout if "samples, reference loss" in line)
    while first.poll() is None:
        try:
            kill(first.pid, "ray::RayTrainWorker", within=1)
        except TimeoutError:
            continue
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 1, errors

    second = start("run", "--resume", str(runs / "digits"), "--retry-failed")
    assert second.stdout is not None
    output = next(line for line in second.stdout if "samples, reference loss" in line)
    kill(second.pid, "ray::RayTrainWorker")
    rest, problems = second.communicate(timeout=280)
    assert second.returncode == 0, problems
    return RunDirectory.open(runs / "digits"), errors, output + rest


@pytest.mark.timeout(1200)
def test_killed_processes_change_no_decision_no_weight_and_no_result(
    finished: tuple[RunDirectory, str], faulty: tuple[RunDirectory, str, str]
) -> None:
    calm, restless = finished[0], faulty[0]
    timed = {"seconds", "images_per_second", "images_per_second_alone", "throughput", "throughput_alone", "restarts"}

    def untimed(entry: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in entry.items() if name not in timed}

    curves = [directory.read_json("curves.json") for directory in (calm, restless)]
    assert {key: untimed(curve) for key, curve in curves[1].items()} == {
        key: untimed(curve) for key, curve in curves[0].items()
    }
    lasts = [{entry["candidate"]: untimed(entry) for entry in directory.decisions()} for directory in (calm, restless)]
    for last in lasts:
        for entry in last.values():
            entry["reason"] = entry["reason"].removesuffix("; retried")
    assert lasts[1] == lasts[0]
    winner = calm.read_json("result.json")["winner"]
    weights = [
        torch.load(Path(str(directory.reports()[winner][-1].checkpoint_path)) / CHECKPOINT_FILE, weights_only=True)
        for directory in (calm, restless)
    ]
    for part in ("model", "ema"):
        assert weights[1][part].keys() == weights[0][part].keys()
        for name, tensor in weights[0][part].items():
            assert torch.equal(weights[1][part][name], tensor), name
    results = [directory.read_json("result.json") for directory in (calm, restless)]
    assert untimed(results[1]) == untimed(results[0])


@pytest.mark.timeout(1200)
def test_restarts_are_reported_and_a_failed_winner_can_be_retried(
    faulty: tuple[RunDirectory, str, str],
) -> None:
    directory, errors, output = faulty
    (line,) = [line for line in errors.splitlines() if line.startswith("adaptive-ray: ")]
    winner = directory.read_json("result.json")["winner"]
    assert f"the winner, batch size {winner}, stopped after" in line
    assert "(RayTrainWorker)" in line  # the cause, not the connection that another worker lost
    assert f"--resume {directory.path} --retry-failed" in line
    restarts = [restart["reason"] for restart in directory.read_json("result.json")["restarts"]]
    assert "RayTrainWorker" in restarts[0]
    assert "ImplicitFunc" in restarts[1]
    assert len(restarts) >= 3
    for reason in restarts:
        assert reason in output  # beside the result, of all sessions
    assert {entry["candidate"]: entry["state"] for entry in directory.decisions()}[winner] == "won"
    events = [json.loads(line) for line in (directory.path / "events.jsonl").read_text().splitlines()]
    elapsed = [event["elapsed"] for event in events]
    assert elapsed == sorted(elapsed)
    assert directory.read_json("result.json")["seconds"] >= elapsed[-1] > 60  # of both sessions


def test_if_all_candidates_fail_every_reason_is_reported(tmp_path: Path) -> None:
    # At such a learning rate the first steps leave every weight without a number.
    ruin = ["--set", "simclr.optimizer.name=sgd", "--set", "simclr.optimizer.learning_rate=1e30"]
    process = start(
        "run", "configs/quickstart.yaml", *SMALL, *ruin, "--set", "candidates=[64]", "--set", "tracking.enabled=false",
        "--runs-dir", str(tmp_path), "--name", "ruin",
    )  # fmt: skip
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1, errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("adaptive-ray: no candidate survived")
    assert "batch size 64: loss became nan" in line  # with several: tests/schedulers/tune/test_scheduler.py
    assert not (tmp_path / "ruin" / "result.json").exists()
