"""End-to-end runs with explore = rotate and with another race."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adaptive_ray.run_directory.directory import RunDirectory

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[3]
SMALL = (
    "dataset.limit=1024",
    "simclr.encoder.width=8",
    "tracking.enabled=false",
    "race.evaluations=4",
    "trial.cpus_per_worker=1",
)


def run(runs: Path, *settings: str) -> tuple[RunDirectory, str]:
    overrides = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    command = [sys.executable, "-m", "adaptive_ray", "run", "configs/quickstart.yaml", "--runs-dir", str(runs)]
    command += ["--name", "run", *overrides]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return RunDirectory.open(runs / "run"), done.stdout


def test_candidates_from_clusters_take_turns_in_one_run_with_stratified_batches(tmp_path: Path) -> None:
    clusters = ("clusters.n_clusters=8", "clusters.encoder=pixels", "sampling=stratified")
    methods = ("accumulation={until: information, alpha: 1.8}", "sample_weights={mode: batch, centres: strata}")
    sizes = "candidates={from_clusters: {alpha: 4}, multipliers: [1, 2]}"
    directory, said = run(
        tmp_path, "explore=rotate", "tracking.enabled=true", sizes, *clusters, *methods, "budget.samples=4096",
        "race.window.samples=512",
    )  # fmt: skip
    assert "8 clusters (fixed); batch sizes: 32, 64" in said
    found = directory.read_json("clusters.json")
    assert (found["m"], sum(found["sizes"]), found["suggested_batch_size"]) == (8, 1024, 32)
    assert "8 clusters in mnist5k" in (directory.path / "clusters.html").read_text()
    (reports,) = directory.reports().values()
    assert list(directory.reports()) == ["32"]
    assert {report.batch_size for report in reports} == {32, 64}
    swaps = directory.swaps()
    assert [swap["candidate"] for swap in swaps[:4]] == ["32", "64"] * 2
    assert all(set(swap["rates"]) == {"32", "64"} for swap in swaps[2:])
    assert set(directory.read_json("mlflow.json")["candidates"]) == {"32", "64"}  # that follow from the clusters
    assert "batch size 32 swapped to 64: turn 2 of the first 4" in said
    result = directory.read_json("result.json")
    assert (result["winner"], result["samples_explored"], result["clusters"]) == ("32", 0, 8)
    assert all((report.batches_per_update or 0) >= 2 for report in reports)  # stratified batches score 0.8 to 0.95
    assert all(0.7 < (report.information or 0) <= 1 for report in reports)
    page = (directory.path / "report.html").read_text()
    for heading in ("Forecast deviations and swaps", "Adaptive accumulation", "Sample weights"):
        assert heading in page


def test_a_rerace_during_the_winners_training(tmp_path: Path) -> None:
    common = ("candidates=[32, 128]", "budget.samples=4096", "race.window.samples=1024", "race.prune_below=0")
    methods = ("clusters.encoder=pixels", "clusters.n_clusters=8", "sample_weights={mode: static}")
    informed = (
        "accumulation={until: information, alpha: auto, images_per_update: 128, score: frechet, negatives: shared}"
    )
    directory, said = run(tmp_path, *common, *methods, informed, "race.rerace={at: [0.5]}", "winner.workers=1")
    won = [entry["candidate"] for entry in directory.decisions() if entry["state"] == "won"]
    assert len(won) == 2
    assert f"forks from {won[0]} after 2,048 samples" in said
    reports = directory.reports()
    assert sorted(key for key in reports if reports[key][-1].samples_seen > 2048) == ["128", "32"]
    result = directory.read_json("result.json")
    assert result["winner"] == won[1]
    assert result["samples_explored"] == 2 * 1024
    assert 4096 <= reports[won[1]][-1].samples_seen < 4096 + 128
    assert {len((report.weighted or {})["most"]) for of_one in reports.values() for report in of_one} == {6}
