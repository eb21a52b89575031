from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptive_ray.errors import UserError
from adaptive_ray.replay.loading import load_sweeps
from tests.adaptive_ray.replay.sweeps import RATES, recorded, watched, write, write_lines


def test_sweep_has_equal_data_rule_and_seed(tmp_path: Path) -> None:
    contents = [recorded(size, seed) for seed in (0, 1) for size in RATES]
    contents.append(recorded(64, 0, learning_rate_rule="none"))  # a single candidate
    sweeps = load_sweeps(write(tmp_path / "deep" / "below", contents).parents[1])
    assert [(sweep.seed, sweep.learning_rate_rule) for sweep in sweeps] == [(0, "sqrt"), (1, "sqrt")]
    assert [run.batch_size for run in sweeps[0].runs] == sorted(RATES)


def test_accumulation_is_part_of_the_candidate(tmp_path: Path) -> None:
    (sweep,) = load_sweeps(write(tmp_path, [recorded(64), recorded(64, accumulation=4)]))
    assert list(sweep.by_key) == ["64", "64x4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"reference_loss": [1.0, 2.0]}, "reference_loss has 2 entries, samples has 40"),
        ({"seconds": [1.0] * 40}, "seconds must be strictly increasing"),
        ({"samples": [1.0, 2.0, 3.0]}, "samples"),
        ({"probe_accuracy": 61}, "probe_accuracy"),
        ({"probe_accuracy": None}, "an accuracy is missing: probe_accuracy, or knn_samples and knn_accuracy"),
        ({"knn_samples": [100.0]}, "knn_accuracy has 0 entries, knn_samples has 1"),
        ({"reference_loss": [float("nan")] * 40}, "reference_loss"),
    ],
)
def test_invalid_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, [recorded(64), recorded(128) | change])
    with pytest.raises(UserError, match=message) as caught:
        load_sweeps(tmp_path)
    assert "1.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rejects_unusable_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        load_sweeps(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no recorded runs"):
        load_sweeps(tmp_path)
    write(tmp_path, [recorded(64)])
    with pytest.raises(UserError, match="no choice to replay"):
        load_sweeps(tmp_path)
    write(tmp_path, [recorded(64), recorded(64)])
    with pytest.raises(UserError, match="2 recordings of made, rule sqrt, seed 0, batch 64; keep one"):
        load_sweeps(tmp_path)
    (tmp_path / "1.json").write_text("{")
    with pytest.raises(UserError, match=r"1\.json cannot be read"):
        load_sweeps(tmp_path)


def test_lines_of_a_scenario_are_runs_with_the_seconds_of_named_hardware(tmp_path: Path) -> None:
    write_lines(tmp_path / "scenarios" / "made.jsonl", [watched(size, seed) for seed in (0, 1) for size in (64, 512)])
    write(tmp_path / "curves", [recorded(64), recorded(512)])
    first, second, curves = load_sweeps(tmp_path)
    assert [sweep.scenario for sweep in (first, second, curves)] == ["made up", "made up", "made, rule sqrt"]
    assert [sweep.hardware for sweep in (curves, first)] == ["recorded", "h200"]
    assert [run.throughput for run in first.runs] == pytest.approx([16_450, 29_480])  # as measured
    assert first.accuracies("samples") == pytest.approx({r.key: r.knn_accuracy[-1] for r in first.runs})
    assert curves.accuracies("samples") == {run.key: run.probe_accuracy for run in curves.runs}
    assert curves.accuracies("seconds") is None
    alone = load_sweeps(tmp_path, "recorded")[0]
    assert alone.by_key["64"].seconds == watched(64)["seconds"]
    gpus = load_sweeps(tmp_path, "64-gpus")[0]
    assert gpus.by_key["512"].throughput > 7 * gpus.by_key["64"].throughput  # an update of each takes equally long


def test_bad_lines_and_unequal_lengths_are_named(tmp_path: Path) -> None:
    for contents, message in (
        (
            [watched(64), watched(128) | {"knn_accuracy": [0.5]}],
            "line 2 is not a recorded run: knn_accuracy has 1 entr",
        ),
        ([watched(64), watched(128) | {"reference_loss": [float("nan")] * 40}], "line 2 is not .* finite number"),
        ([watched(64)], "no scenario, data set, rule and seed has two batch sizes"),
    ):
        write_lines(tmp_path / "made.jsonl", contents)
        with pytest.raises(UserError, match=message):
            load_sweeps(tmp_path)
    half = {name: watched(128)[name][:20] for name in ("samples", "seconds", "train_loss", "reference_loss")}
    write_lines(tmp_path / "made.jsonl", [watched(64), recorded(128, scenario="made up") | half])
    with pytest.raises(UserError, match="batch 128 ends after 20,000 samples, batch 64 after 40,000; record all"):
        load_sweeps(tmp_path)
    with pytest.raises(UserError, match="--hardware tpu: unknown; use recorded, h200, cpu, 8-gpus, 64-gpus"):
        load_sweeps(tmp_path, "tpu")
