"""A run that is interrupted, moved and loses a checkpoint equals an uninterrupted run bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptive_ray.config.loading import load_config
from adaptive_ray.experiment.experiment import Experiment
from adaptive_ray.run_directory.directory import RunDirectory
from trainables.training.checkpoint import CHECKPOINT_FILE
from trainables.training.loop import train

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[3]
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"
#: One candidate with one worker, so that nothing else can differ in rounding.
ONE = [
    "candidates=[64]", "explore=none", "winner.workers=1", "budget.samples=3072", "race.window.samples=3072",
    "race.evaluations=12", "simclr.encoder.width=8", "dataset.limit=640", "dataset.reference_images=64",
    "tracking.enabled=false", "trial.cpus_per_worker=1",
]  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "adaptive_ray", "run", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_is_interrupted_moved_and_its_newest_checkpoint_is_cut(tmp_path: Path) -> None:
    settings = [word for setting in ONE for word in ("--set", setting)]
    first = start(str(QUICKSTART), *settings, "--runs-dir", str(tmp_path / "runs"), "--name", "one")
    assert first.stdout is not None
    for line in first.stdout:
        if "batch size 64: 768 of 3,072 samples" in line:
            break
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors

    place = tmp_path / "elsewhere" / "two"
    place.parent.mkdir()
    (tmp_path / "runs" / "one").rename(place)
    directory = RunDirectory.open(place)
    (reported,) = directory.reports().values()
    assert 3 <= len(reported) < 12
    assert str(tmp_path) not in (place / "reports.jsonl").read_text()
    kept = [Path(str(report.checkpoint_path)) for report in reported[-2:]]
    assert all((path / CHECKPOINT_FILE).is_file() for path in kept)
    cut = kept[1] / CHECKPOINT_FILE
    os.truncate(cut, cut.stat().st_size // 2)

    second = start("--resume", str(place))
    output, errors = second.communicate(timeout=280)
    assert second.returncode == 0, errors
    assert f"is resumed from {reported[-2].samples_seen:,} samples: {cut} is corrupt" in output
    checkpoints = [path for path in place.glob("train/*/checkpoint_*") if path.is_dir()]
    assert len(checkpoints) == 2  # a new one has taken the place of the corrupt one
    assert not (tmp_path / "runs" / "one").exists()

    losses: list[float] = []
    experiment = Experiment(load_config(QUICKSTART, ONE))
    assert experiment.prepared is not None
    alone = experiment.prepared.settings()["64"]
    threads = torch.get_num_threads()
    assert experiment.prepared.layout is not None
    torch.set_num_threads(experiment.prepared.layout.winner.threads)
    try:
        whole = train(alone, experiment.data.training, lambda metrics, **_: losses.append(metrics["reference_loss"]))
    finally:
        torch.set_num_threads(threads)
    (curve,) = directory.read_json("curves.json").values()
    assert curve["samples"] == list(range(256, 3072 + 256, 256))  # every report counts once
    assert curve["reference_loss"] == losses
    weights = load_file(place / "encoder.safetensors")
    assert weights.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    assert json.loads((place / "result.json").read_text())["reference_loss"] == losses[-1]
