"""The winner's encoder and candidate after a resume with repeated reports."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from adaptive_ray.config.loading import load_config
from adaptive_ray.datasets.dataset import load_dataset
from adaptive_ray.experiment.results import Winner
from adaptive_ray.run_directory.directory import RunDirectory
from schedulers import Candidate
from trainables.report import TrainingReport
from trainables.settings import TrainSettings
from trainables.training.checkpoint import save_checkpoint
from trainables.training.loop import initial_model

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


def test_repeated_reports_count_once_and_the_last_one_names_the_checkpoint(tmp_path: Path) -> None:
    config = load_config(QUICKSTART, ["dataset.limit=120", "dataset.test_fraction=0.02", f"runs_dir={tmp_path}"])
    data = load_dataset(config.dataset, 0)
    directory = RunDirectory.create(config, "run")
    shared = {"budget": 1000, "evaluate_every": 100, "encoder": {"width": 8, "depth": 1}, "seed": 0}
    settings = TrainSettings.model_validate({**shared, "batch_size": 32})

    def report(samples: int, batch_size: int, checkpoint: str) -> None:
        path = str(directory.path / "train" / checkpoint)
        entry = TrainingReport(samples_seen=samples, batch_size=batch_size, reference_loss=4.0, checkpoint_path=path)
        directory.append_report("32", entry)

    for samples, batch_size in ((500, 32), (700, 32), (800, 64), (900, 64), (1000, 64)):
        report(samples, batch_size, "deleted")
    for samples, batch_size in ((700, 32), (800, 64), (900, 64), (1000, 64)):
        report(samples, batch_size, "there")
    for samples in (600, 700):  # corrupt, and repeated once more
        report(samples, 32, "there")
    there = directory.path / "train" / "there"
    there.mkdir(parents=True)
    model = initial_model(settings, data.training, torch.device("cpu"))
    save_checkpoint({"ema": model.state_dict()}, there)

    winner = Winner.saved(Candidate(32), directory, data, settings)
    assert [entry.samples_seen for entry in winner.reports] == [500, 700, 800, 900, 1000]
    assert winner.chosen == Candidate(64)  # 300 samples with 64, and 200 with 32 in the later half
    weights = load_file(directory.path / "encoder.safetensors")
    assert torch.equal(weights[name := next(iter(weights))], model.encoder.state_dict()[name])
