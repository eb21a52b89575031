from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptive_ray.errors import UserError
from adaptive_ray.replay.recordings import load_sweeps
from tests.adaptive_ray.replay.sweeps import RATES, recorded, write


def test_sweep_has_equal_data_rule_and_seed(tmp_path: Path) -> None:
    contents = [recorded(size, seed) for seed in (0, 1) for size in RATES]
    contents.append(recorded(64, 0, learning_rate_rule="none"))  # a single candidate
    sweeps = load_sweeps(write(tmp_path / "deep" / "below", contents).parents[1])
    assert [(sweep.seed, sweep.learning_rate_rule) for sweep in sweeps] == [(0, "sqrt"), (1, "sqrt")]
    assert [run.batch_size for run in sweeps[0].runs] == sorted(RATES)


def test_accumulation_is_part_of_the_candidate(tmp_path: Path) -> None:
    (sweep,) = load_sweeps(write(tmp_path, [recorded(64), recorded(64, accumulation=4)]))
    assert list(sweep.by_key) == ["64", "64x4"]


def test_budget_is_the_shortest_recording(tmp_path: Path) -> None:
    (sweep,) = load_sweeps(write(tmp_path, [recorded(64), recorded(512)]))
    assert sweep.budget("samples") == 40_000
    assert sweep.budget("seconds") == sweep.by_key["512"].seconds[-1] < sweep.by_key["64"].seconds[-1]
    at_the_end = sweep.final_losses("seconds")
    assert at_the_end["512"] == sweep.by_key["512"].reference_loss[-1]
    assert at_the_end["64"] > sweep.by_key["64"].reference_loss[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"reference_loss": [1.0, 2.0]}, "reference_loss has 2 entries, samples has 40"),
        ({"seconds": [1.0] * 40}, "seconds must be strictly increasing"),
        ({"samples": [1.0, 2.0, 3.0]}, "samples"),
        ({"probe_accuracy": 61}, "probe_accuracy"),
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
