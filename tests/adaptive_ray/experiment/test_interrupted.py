"""Runs that are interrupted by signals or by a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console

from adaptive_ray import load_encoder
from adaptive_ray.config.loading import load_config
from adaptive_ray.errors import UserError
from adaptive_ray.experiment.experiment import Experiment
from adaptive_ray.report.page import write_report
from adaptive_ray.run_directory.directory import RunDirectory
from tests.adaptive_ray.processes import descendants, left_of, psutil
from tests.disks import disk, fill

pytestmark = pytest.mark.timeout(900)

REPOSITORY = Path(__file__).resolve().parents[3]


def start(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_TRAIN_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "adaptive_ray", "run", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**inherited, **environment, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def wait_for(process: subprocess.Popen[str], text: str) -> list[str]:
    """The lines up to the first that contains ``text``."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return seen
    raise AssertionError("".join(seen) + str(process.communicate()[1]))


def mlflow_says(runs: Path) -> set[str]:
    client = MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "adaptive_ray"]
    return {run.info.status for run in client.search_runs([experiment.experiment_id])}


def mixture(folder: Path) -> Path:
    """Unlabelled 12-bit TIFFs, a larger transparent one, and files that are skipped."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(60):
        Image.fromarray(generator.integers(0, 4096, (20 + index, 30)).astype(np.uint16)).save(folder / f"{index}.tif")
    Image.fromarray(generator.integers(0, 256, (80, 90, 4), dtype=np.uint8)).save(folder / "drawn on top.PNG")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "0.tif").write_bytes((folder / "0.tif").read_bytes())
    (folder / "again.tif").symlink_to("0.tif")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").touch()
    return folder


#: What is said of it before it is trained on.
SURVEY = (
    "image_folder: 33 training images, 16 reference images, 12 test images",
    "unlabelled: no class directories",
    "modes: 60 16-bit grey, 1 RGBA",
    "60 images with more than 8 bits (integers): black = 0, white = 4,095; values of 60 samples: 0 to 4,095",
    "1 images with transparency: background #ffffff (dataset.background)",
    "skipped: hidden files and directories: 1 (.ipynb_checkpoints)",
    "skipped: other file types: 1 (notes.txt)",
    "skipped: files that cannot be decoded: 1 (empty.jpg: the file is empty)",
    "skipped: files linked twice: 1 (again.tif)",
)


@pytest.fixture(scope="module")
def own_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration for an image folder, with a custom loss."""
    folder = tmp_path_factory.mktemp("config")
    settings = {
        "dataset": {"name": "image_folder", "root": str(mixture(folder / "images")), "image_size": 16},
        "batch_size": 8,
        "explore": "none",
        "budget": {"samples": 512},
        "race": {"evaluations": 4},
        "trial": {"cpus_per_worker": 1},  # two threads compute such small steps slower than one
        "simclr": {"encoder": {"width": 8, "depth": 1}, "loss": "loss_of_a_user:mine"},
    }
    settings["dataset"] |= {"reference_images": 16, "stream": True}  # type: ignore[operator]
    (folder / "loss_of_a_user.py").write_text("from trainables.simclr import nt_xent as mine\n")
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_an_early_error_leaves_nothing_running_in_mlflow(
    own_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray cannot start while MLflow is opened in another thread; the next try uses the same MLflow runs."""
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'too-long' * 20}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.syspath_prepend(own_images.parent)
    config = load_config(own_images, runs_dir=tmp_path)
    runs = []
    for _ in range(2):
        with pytest.raises(UserError, match="RAY_TMPDIR"):
            Experiment(config).run(RunDirectory.create(config, "early"), Console(quiet=True))
        assert mlflow_says(tmp_path) == {"FAILED"}
        runs.append((tmp_path / "early" / "mlflow.json").read_text())
    assert runs[0] == runs[1]
    sys.modules.pop("loss_of_a_user")


@pytest.mark.ray
def test_repeated_signals_while_ray_starts_end_the_run_once(own_images: Path, tmp_path: Path) -> None:
    """Interrupted after the race; see test_experiment.py for the race."""
    process = start(own_images.parent, own_images, "--runs-dir", tmp_path, "--name", "stopped")
    wait_for(process, "starting Ray")
    deadline = time.monotonic() + 120
    while len(children := descendants(process.pid)) < 3:  # Ray's first processes
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while process.poll() is None:
        assert time.monotonic() < deadline
        with suppress(psutil.NoSuchProcess):
            children = list({*children, *descendants(process.pid)})
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    output, errors = process.communicate(timeout=10)
    assert process.returncode == 130, errors
    resume = f"adaptive-ray run --resume {tmp_path / 'stopped'}"
    assert errors == f"adaptive-ray: interrupted; continue with: {resume}\n"
    assert "Traceback" not in output
    assert left_of(children, within=60) == []
    assert mlflow_says(tmp_path) == {"KILLED"}


#: A console, and files, whose letters are those of ASCII.
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "disk", "64m") as place:
        yield place


@pytest.mark.ray
def test_results_are_written_after_a_full_disk_and_a_blocked_path(own_images: Path, small_disk: Path) -> None:
    """Unlabelled images: no probes, and no training is repeated."""
    runs, run = small_disk / "runs", small_disk / "runs" / "run"
    resume = f"continue with: adaptive-ray run --resume {run}"
    process = start(own_images.parent, own_images, "--runs-dir", runs, "--name", "run", **ASCII)
    said = wait_for(process, "samples, reference loss")
    filler = fill(small_disk)
    assert set(SURVEY) <= {line.rstrip("\n") for line in said}
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 1, errors
    assert "No space left on device" in errors.splitlines()[-1]
    assert resume in errors.splitlines()[-1]
    assert "Traceback" not in output + errors
    lines = (run / "reports.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["samples_seen"] > 0
    assert not (run / "result.json").exists()

    filler.unlink()
    (run / "encoder.json").mkdir()
    process = start(own_images.parent, "--resume", run, **ASCII)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 1, errors
    assert errors.splitlines()[-1].startswith(f"adaptive-ray: {run / 'encoder.json'}: Is a directory")
    assert resume in errors.splitlines()[-1]
    assert "Traceback" not in output + errors
    reports = (run / "reports.jsonl").read_text()
    assert json.loads(reports.splitlines()[-1])["samples_seen"] == 512

    (run / "encoder.json").rmdir()
    process = start(own_images.parent, "--resume", run, **ASCII)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert (run / "reports.jsonl").read_text() == reports
    inputs = json.loads((run / "inputs.json").read_text())
    assert inputs["unreadable"] == {str(own_images.parent / "images" / "empty.jpg"): "the file is empty"}
    features = load_encoder(run).embed(np.random.default_rng(1).random((5, 16, 16, 3)))
    assert features.shape == (5, 32)
    assert features.std() > 0
    result = json.loads((run / "result.json").read_text())
    assert result["probe_accuracy"] is None
    assert result["knn_accuracy"] is None
    assert np.isfinite(result["reference_loss"])
    assert set(result["unavailable"]) == {name for name in result if name.endswith("_accuracy")}
    assert (run / "neighbours.png").is_file()
    assert "linear classifier" in output
    assert "- probes: the images are unlabelled or have a single class" in output
    assert "<b>-</b>" in (run / "report.html").read_text(encoding="utf-8")
    assert mlflow_says(runs) == {"FINISHED"}
    assert "loss_of_a_user" not in sys.modules
    write_report(RunDirectory.open(run))  # without the user's code
    assert "loss_of_a_user" not in sys.modules
