"""Benchmarks run, and derive what they print as they say."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from adaptive_ray.replay.loading import load_sweeps

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def script(name: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests run on the other cores
    done = subprocess.run(
        command, check=False, cwd=BENCHMARKS.parent, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(candidate: str, samples: int, seconds: float) -> dict[str, Any]:
    return {"candidate": candidate, "batch_size": int(candidate), "samples_seen": samples, "seconds": seconds}


def test_startup_derives_its_rows_from_lines_and_reports() -> None:
    lines = [
        (5.0, "[0:00] starting Ray and MLflow"),
        (9.0, "[0:04] race: batch sizes 64, 256 in parallel"),
        (21.0, "[0:16] batch size 64: 1,024 of 4,096 samples, reference loss 3.1"),
        (24.0, "[0:19] batch size 256: 1,024 of 4,096 samples, reference loss 3.2"),
        (30.0, "[0:25] batch size 256 pruned: too slow"),
        (30.0, "[0:25] batch size 64 won: the last one"),
        (30.1, "[0:25] batch size 64: 2,048 of 4,096 samples, reference loss 2.9"),
        (40.0, "[0:35] batch size 64: 3,072 of 4,096 samples, reference loss 2.8"),
        (44.0, "[0:39] batch size 64: 4,096 of 4,096 samples, reference loss 2.7"),
        (45.0, "[0:40] evaluating the encoder on held-out images"),
    ]
    reports = [
        report("64", 1024, 8.0), report("256", 1024, 8.0), report("64", 2048, 16.0), report("64", 3072, 20.0),
        report("64", 4096, 24.0),
    ]  # fmt: skip
    found = load("startup").figures(lines, 50.0, reports)
    assert found["first step"] == pytest.approx(24 - 8 + 8 * 256 / 1024)
    assert found["race"] == pytest.approx(21)
    assert found["share"] == pytest.approx(42)
    assert found["training"] == pytest.approx(16)
    assert found["restart"] == pytest.approx(40 - 4 - 30)
    assert found["winner"] == pytest.approx(45 - 36)
    assert found["probing"] == pytest.approx(5)


def test_wall_time_is_split_at_the_decision(tmp_path: Path) -> None:
    def event(elapsed: float, kind: str, candidate: str, **values: float) -> dict[str, Any]:
        return {"event": kind, "candidate": candidate, **values, "elapsed": elapsed}

    def reported(elapsed: float, candidate: str, samples: int, seconds: float) -> dict[str, Any]:
        return event(elapsed, "report", candidate, samples=samples, loss=3.0, seconds=seconds)

    events = [
        event(12.0, "measure", "64", throughput=140.0), event(12.5, "measure", "256", throughput=210.0),
        reported(14.0, "64", 512, 2.0), reported(15.0, "256", 512, 2.0), reported(18.0, "64", 1024, 4.0),
        reported(20.0, "256", 1024, 4.0), reported(24.0, "256", 1536, 6.5), reported(26.5, "256", 2048, 9.0),
        reported(29.0, "256", 2560, 11.5),
    ]  # fmt: skip
    decisions = [
        {"candidate": "64", "state": "waiting", "samples": 1024.0},
        {"candidate": "256", "state": "waiting", "samples": 1024.0},
        {"candidate": "64", "state": "pruned", "samples": 1024.0},
        {"candidate": "256", "state": "won", "samples": 1024.0},
        {"candidate": "256", "state": "pruned", "samples": 2560.0},  # after the race: does not move its end
    ]
    for name, lines in (("events", events), ("decisions", decisions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"winner": "256", "chosen_batch_size": 256, "seconds": 33.0}
    (tmp_path / "result.json").write_text(json.dumps(result))
    module = load("wall_time")
    found = module.figures(tmp_path, 40.0)
    expected = {"other": 7, "start-up": 14, "race": 6, "gap": 1.5, "winner": 7.5, "evaluation": 4, "whole": 40}
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert sum(found[key] for key in expected) == pytest.approx(2 * found["whole"])
    assert found["measured"] == 210
    assert found["reached"] == pytest.approx(1024 / 5)
    table = module.show({"several": found, "256 alone": {**found, "whole": 32.0}}, 1.6, "")
    assert list(table.columns[2].cells)[-1] == "1.25"
    knn = {512: 0.5, 1024: None, 2048: 0.8}
    reports = [
        {"candidate": "256", "samples_seen": at, "online_knn_accuracy": accuracy} for at, accuracy in knn.items()
    ]
    (tmp_path / "reports.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reports))
    curve = module.accuracy_curve(tmp_path)
    assert curve == [(15.0, 0.5), (26.5, 0.8)]
    curves = {"several": curve, "64 alone": [(5.0, 0.4), (9.0, 0.6)], "256 alone": [(9.0, 0.695), (20.0, 0.7)]}
    found = {name: {**found, "whole": 32.0} for name in curves}
    table = module.show(found, 1.6, "", curves)
    assert [list(column.cells)[-2:] for column in table.columns[1:]] == [["26.5", "2.94"], ["-", ""], ["9.0", ""]]


def test_default_is_safer_than_every_fixed_size() -> None:
    """In its worst unit and scenario, it loses less than any fixed size in its own, in reference loss."""
    module = load("choosing")
    policies = {name: (module.POLICIES | module.VARIANTS)[name] for name in (*module.SIZES, "default")}
    found = module.rows_of(policies, argparse.Namespace(half=None))
    assert list(found) == ["samples", "seconds, h200", "seconds, cpu", "seconds, 8-gpus", "seconds, 64-gpus"]
    column = "reference_loss_regret"
    unsafe = {name: max(module.worst(module.of(rows, name), column) for rows in found.values()) for name in policies}
    default = unsafe.pop("default")
    assert default < min(unsafe.values()) - 0.1
    costs = [[row["cost"] for row in module.of(rows, "default")] for rows in found.values()]
    assert max(map(np.mean, costs)) < 1.5


@pytest.mark.slow
def test_throughput_covers_the_whole_step() -> None:
    output = script("throughput", "--quick", "--no-lightly")
    whole, split = output.split("Phases, % of a step")
    for table in (whole, split):
        rows = [line for line in table.splitlines() if line.startswith("│ adaptive_ray")]
        assert len(rows) == 2
    for row in rows:
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        *phases, other = (float(cell) for cell in cells[-7:])
        assert sum(phases) + other == pytest.approx(100, abs=0.5)


@pytest.mark.slow
def test_swap_cost_covers_all_candidates() -> None:
    output = script("swap_cost", "--batch-sizes", "8", "16", "--steps", "1", "--rounds", "1")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[:1] == "│"]
    assert [row[0] for row in rows] == ["8", "16", "8x4"]
    for row in rows:
        assert float(row[1]) > 0  # a step
        assert float(row[5]) < 100  # ms: changing the candidate sets up nothing


@pytest.mark.slow
def test_recording_resumes_and_can_be_replayed(tmp_path: Path) -> None:
    few = ["--datasets", "mnist5k", "--rules", "sqrt", "--seeds", "0", "--images", "256", "--epochs", "1"]
    few += ["--evaluations", "4", "--batch-sizes", "32", "64", "--out", str(tmp_path)]
    script("record_curves", *few)
    files = sorted(tmp_path.rglob("*.json"))
    assert [file.name for file in files] == ["sqrt-seed0-batch32.json", "sqrt-seed0-batch64.json"]
    (sweep,) = load_sweeps(tmp_path)
    assert sweep.dataset == "mnist5k"
    assert sweep.budget("samples") == 256
    assert all(0 < accuracy < 1 for accuracy in (sweep.accuracies("samples") or {"": 0}).values())
    files[0].unlink()
    written = files[1].stat().st_mtime_ns
    script("record_curves", *few)
    assert files[0].exists()
    assert files[1].stat().st_mtime_ns == written


def test_a_long_tail_has_a_hundred_times_fewer_images_of_its_last_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sampling = load("sampling")
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    own, reference, probed = sampling.chosen(labels, "long-tailed", 2500, seed=1)
    counts = np.bincount(labels[own])
    assert counts.sum() == pytest.approx(2500, abs=5)
    assert counts[0] / counts[9] == pytest.approx(sampling.RATIO, rel=0.05)
    assert (np.diff(counts) < 0).all()
    even, _, _ = sampling.chosen(labels, "even", 2500, seed=1)
    assert len(even) == 2500
    assert np.bincount(labels[even]).min() > 200
    for one in (own, even):
        assert not set(one) & set(reference)
        assert not set(one) & set(probed)


@pytest.mark.slow
def test_clusters_of_synthetic_features_are_found() -> None:
    output = script("clusters", "scale", "--rows", "2000", "--dimensions", "32", "--modes", "4")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[:1] == "│"]
    assert [row[:2] for row in rows] == [["4", "4"]]
    assert all(float(row[2]) > 0.95 for row in rows)


@pytest.mark.slow
def test_costs_of_methods_are_fractions_of_a_step() -> None:
    output = script("method_costs", "--steps", "1", "--batch-size", "32", "--projections", "8")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[:1] == "│"]
    assert [row[0] for row in rows] == [
        *("score histogram", "score frechet", "score mmd"),
        *("weights, static", "weights, batch", "weights, batch strata"),
    ]
    assert all(float(row[1]) > 0 for row in rows)


def test_methods_are_compared_by_their_updates_and_a_race_at_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    methods = load("methods")
    reports = [{"samples_seen": 100, "images_per_update": 25.0}, {"samples_seen": 160, "images_per_update": 30.0}]
    assert methods.updates_of(reports) == 6
    rates = {32: 1.0, 64: 1.5, 128: 0.7}
    curves = {
        size: [
            {"samples_seen": samples, "reference_loss": 3 + 3 * (rate * samples / 1000 + 1) ** -0.5}
            for samples in range(250, 2001, 250)
        ]
        for size, rate in rates.items()
    }
    assert methods.winner_of(curves, 10_000) == 64


@pytest.mark.slow
def test_scenarios_record_accuracy_during_training_and_resume(tmp_path: Path) -> None:
    few = ["--scenarios", "digits", "--seeds", "0", "--images", "128", "--sizes", "32", "64"]
    few += ["--reports", "4", "--out", str(tmp_path)]
    script("record_scenarios", *few)
    file = tmp_path / "digits.jsonl"
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(run["batch_size"] for run in runs) == [32, 64]
    for run in runs:
        assert len(run["knn_samples"]) == len(run["knn_accuracy"]) == 4
        assert run["knn_samples"][-1] == run["samples"][-1] == 1280
        assert len(run["reference_loss"]) == len(run["learning_rate"]) == len(run["samples"])
        assert run["knn_accuracy"][-1] > 0.2  # ten classes
    file.write_text(json.dumps(runs[0]) + "\n")
    assert "batch 64" in script("record_scenarios", *few) or runs[0]["batch_size"] == 64
    assert len(file.read_text().splitlines()) == 2


def test_every_recorded_scenario_has_complete_sweeps() -> None:
    scenarios = load("record_scenarios")
    for file in sorted((BENCHMARKS / "scenarios").glob("*.jsonl")):
        sizes: dict[int, list[int]] = {}
        for run in map(json.loads, file.read_text().splitlines()):
            sizes.setdefault(run["seed"], []).append(run["batch_size"])
            assert len(run["knn_accuracy"]) >= min(12, len(run["samples"]) // 4)
            assert np.isfinite(run["reference_loss"]).all()
        for seed, found in sizes.items():
            assert sorted(found) == list(scenarios.SCENARIOS[file.stem].sizes), (file.name, seed)


def test_shrunk_images_are_means_of_squares() -> None:
    images = np.array([[[[0, 2, 10, 10], [4, 6, 10, 13], [0, 0, 255, 255], [0, 1, 255, 255]]]], np.uint8)
    assert load("record_scenarios").shrunk(images, 2).tolist() == [[[[3, 11], [0, 255]]]]


def test_growing_batches_get_the_samples_of_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    growing = load("growing")
    seconds, hardware = 3.0, growing.HARDWARE["8-gpus"]
    for plan in growing.PLANS.values():
        samples, spent, start = growing.samples_within(seconds, plan, hardware), 0.0, 0.0
        for size, until in plan:
            spent += (until - start) * samples / hardware.images_per_second(growing.Candidate(size))
            start = until
        assert (start, spent) == (1.0, pytest.approx(seconds))
    # After the same number of samples, the same part of an old gradient is left.
    left = {size: growing.second_beta(size, "samples") ** (4096 / size) for size in growing.SIZES}
    assert list(left.values()) == pytest.approx([left[256]] * len(left))
