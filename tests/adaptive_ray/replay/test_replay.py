from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from adaptive_ray.cli import app
from adaptive_ray.errors import UserError
from adaptive_ray.replay.policies import POLICIES
from adaptive_ray.replay.replay import forecast_rows, known_policies, replay, seed_noise
from tests.adaptive_ray.replay.sweeps import RATES, recorded, sweep, watched, write, write_lines


def rows_of(axis: str) -> dict[str, dict[str, float]]:
    return {row["policy"]: row for row in replay([sweep()], POLICIES, axis)}


def test_regret_is_relative_to_the_best_recording() -> None:
    made = sweep()
    accuracies = made.accuracies("samples")
    assert accuracies is not None
    for row in replay([made], POLICIES, "samples"):
        chosen = made.by_key[str(row["chosen_batch_size"])]
        assert row["regret"] == pytest.approx(max(accuracies.values()) - accuracies[chosen.key])
        lowest = min(run.reference_loss[-1] for run in made.runs)
        assert row["reference_loss_regret"] == pytest.approx(chosen.reference_loss[-1] - lowest)
        assert row["regret"] >= 0
        assert row["reference_loss_regret"] >= 0


@pytest.mark.parametrize("axis", ["samples", "seconds"])
def test_costs_are_in_units_of_full_runs(axis: str) -> None:
    rows = rows_of(axis)
    assert rows["sweep"]["cost"] == pytest.approx(4)
    assert rows["random"]["cost"] == pytest.approx(1, abs=0.05)
    assert 1 < rows["default"]["cost"] <= rows["joint"]["cost"] < rows["asha"]["cost"]
    assert all(row["cost"] == row[f"cost_{axis}"] for row in rows.values())


def test_joint_intervals_cover_final_losses() -> None:
    rows = [row for row in forecast_rows([sweep(seed) for seed in range(4)]) if row["forecaster"] == "joint"]
    assert rows[-1]["share"] == 0.5
    assert rows[-1]["error"] < 0.03
    assert rows[-1]["coverage_95%"] >= 0.9
    assert all(row["coverage_50%"] <= row["coverage_80%"] <= row["coverage_95%"] for row in rows)


def test_seed_noise_needs_two_seeds() -> None:
    assert all(math.isnan(value) for value in seed_noise([sweep()], "samples"))
    accuracy, loss = seed_noise([sweep(0), sweep(1)], "samples")
    assert 0 < accuracy < 0.01
    assert 0 < loss < 0.05


def test_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="--policy grid: unknown; use default, default_without_ties, forecast, joint"):
        known_policies(["grid"])


def test_candidate_without_reports_in_the_budget_is_named() -> None:
    made = sweep()
    late = made.by_key["64"].model_copy(update={"seconds": [1e6 + second for second in made.by_key["64"].seconds]})
    slow = dataclasses.replace(made, runs=(late, *made.runs[1:]))
    assert replay([slow], known_policies(["default"]), "samples")
    with pytest.raises(UserError, match=r"made, rule sqrt, seed 0: batch 64 first reports after .* seconds, but"):
        replay([slow], POLICIES, "seconds")


def test_command_prints_a_table_and_writes_rows(tmp_path: Path) -> None:
    curves = write(tmp_path / "curves", [recorded(size, seed) for seed in (0, 1) for size in RATES])
    out = tmp_path / "out.json"
    done = CliRunner().invoke(
        app, ["replay", str(curves), "--policy", "default", "--policy", "sweep", "--json", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "2 sweeps of 4 candidates" in done.output
    rows = json.loads(out.read_text())
    assert [(row["policy"], row["seed"]) for row in rows] == [
        ("default", 0),
        ("sweep", 0),
        ("default", 1),
        ("sweep", 1),
    ]
    expected = {"policy", "dataset", "learning_rate_rule", "seed", "axis", "chosen_batch_size", "regret"}
    assert expected | {"reference_loss_regret", "cost"} <= set(rows[0])
    assert {row["chosen_batch_size"] for row in rows} == {128}


def test_command_writes_plots(tmp_path: Path) -> None:
    curves = write(tmp_path / "curves", [recorded(size, seed) for seed in (0, 1) for size in RATES])
    done = CliRunner().invoke(app, ["replay", str(curves), "--axis", "seconds", "--plots", str(tmp_path / "plots")])
    assert done.exit_code == 0, done.output
    for name in ("policies", "forecasts", "curves"):
        file = tmp_path / "plots" / f"{name}.png"
        assert str(file) in done.output
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L"))
        assert pixels.shape[1] > 700
        assert (pixels < 128).any()  # something is drawn


def test_invalid_arguments(tmp_path: Path) -> None:
    curves = write(tmp_path / "curves", [recorded(64), recorded(128)])
    for arguments, message in (
        ([str(curves), "--axis", "steps"], "--unit steps: use samples or seconds"),
        ([str(tmp_path / "none")], "no such directory"),
        ([str(curves), "--json", str(tmp_path / "no" / "out.json")], "no does not exist; create it first"),
        ([str(curves), "--json", str(tmp_path)], "cannot be written"),
    ):
        done = CliRunner().invoke(app, ["replay", *arguments])
        assert isinstance(done.exception, UserError)
        assert message in str(done.exception)


def test_regret_at_equal_time_is_that_of_the_accuracy_then(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    curves = write_lines(tmp_path / "runs" / "made.jsonl", [watched(size, seed) for seed in (0, 1) for size in RATES])
    policies = ["--policy", "default", "--policy", "sweep"]
    done = CliRunner().invoke(app, ["replay", str(curves), *policies, "--unit", "seconds", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "regret in points is empty" not in done.output
    rows = json.loads(file.read_text())
    assert {(row["scenario"], row["unit"], row["axis"], row["hardware"]) for row in rows} == {
        ("made up", "seconds", "seconds", "h200")
    }
    assert [row["regret"] for row in rows if row["policy"] == "sweep"] == pytest.approx([0, 0], abs=1e-9)
    write(curves / "alone", [recorded(size) for size in RATES])
    both = CliRunner().invoke(app, ["replay", str(curves), *policies, "--unit", "seconds", "--json", str(file)])
    assert (
        "regret in points is empty for 1 of 3 sweeps: their recordings have no accuracy during training" in both.output
    )
    assert [row["regret"] for row in json.loads(file.read_text()) if row["hardware"] == "recorded"] == [None, None]
