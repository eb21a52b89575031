from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptive_ray.errors import UserError
from adaptive_ray.replay.loading import load_sweeps
from tests.adaptive_ray.replay.sweeps import recorded, watched, write, write_lines


def test_budget_is_the_shortest_recording(tmp_path: Path) -> None:
    (sweep,) = load_sweeps(write(tmp_path, [recorded(64), recorded(512)]))
    assert sweep.budget("samples") == 40_000
    assert sweep.budget("seconds") == sweep.by_key["512"].seconds[-1] < sweep.by_key["64"].seconds[-1]
    at_the_end = sweep.final_losses("seconds")
    assert at_the_end["512"] == sweep.by_key["512"].reference_loss[-1]
    assert at_the_end["64"] > sweep.by_key["64"].reference_loss[-1]


def test_equal_time_gives_every_candidate_reports_within_the_budget(tmp_path: Path) -> None:
    write_lines(tmp_path / "made.jsonl", [watched(64), watched(512)])
    (sweep,) = load_sweeps(tmp_path, "64-gpus")
    timed = sweep.at_equal_time()
    slow, fast = timed.runs
    assert slow.seconds == pytest.approx(fast.seconds)
    assert len(slow.seconds) == 40
    assert fast.samples == pytest.approx(sweep.runs[1].samples)
    end = sweep.runs[0].throughput * sweep.budget("seconds")
    assert slow.samples[-1] == pytest.approx(end)
    assert slow.reference_loss[-1] == pytest.approx(sweep.runs[0].loss_at("samples", end))
    known, accuracies = sweep.accuracies("seconds"), timed.accuracies("seconds")
    assert known is not None
    assert accuracies is not None
    assert accuracies["512"] == pytest.approx(known["512"])
    assert accuracies["64"] <= known["64"]  # before the first accuracy, from the lowest of all
    first = max(run.reference_loss[0] for run in sweep.runs)
    assert all(first >= run.reference_loss[0] > run.reference_loss[-1] for run in timed.runs)


def test_equal_time_reads_a_recording_where_the_learning_rate_adds_up_to_that_of_a_shorter_schedule(
    tmp_path: Path,
) -> None:
    samples = np.arange(1, 41) * 1_000.0
    decaying = (1 - samples / 40_000).tolist()  # its integral is a quadratic function
    done = np.cumsum(decaying)
    losses = (6 - done / done[-1]).tolist()  # progress is the integral
    lines = [watched(size) | {"reference_loss": losses, "learning_rate": decaying} for size in (64, 512)]
    write_lines(tmp_path / "made.jsonl", [line | {"samples": samples.tolist()} for line in lines])
    (sweep,) = load_sweeps(tmp_path, "h200")
    slow, fast = sweep.at_equal_time().runs
    assert fast.reference_loss == pytest.approx(losses)
    share = 16_450 / 29_480  # of the samples, and so of the integral of the learning rate
    ahead = [6 - share * (6 - loss) for loss in losses]
    first = losses[0]  # before the first report, losses are interpolated from it
    assert [loss for loss in slow.reference_loss if loss < first - 0.05] == pytest.approx(
        [loss for loss in ahead if loss < first - 0.05], abs=2e-3
    )
    assert slow.samples == pytest.approx([share * at for at in samples])
    assert slow.learning_rate == pytest.approx(decaying)
    with pytest.raises(UserError, match="learning_rate has 39 entries, samples has 40"):
        load_sweeps(write_lines(tmp_path / "b" / "made.jsonl", [lines[0] | {"learning_rate": decaying[:-1]}]))
