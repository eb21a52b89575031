"""The report of a training run holds every metric, and each is registered."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from schedulers import Candidate
from tests.trainables.runs import data, run, small
from trainables.report import METRICS, TrainingReport


def weighted() -> dict[str, Any]:
    """Settings and data of a run with sample weights and adaptive accumulation."""
    informed = {"until": "information", "alpha": 1, "score": "histogram"}
    images = data()
    strata = np.arange(len(images.images)) % 2
    clustered = type(images)(images.images, images.reference, strata=strata)
    return {**small(information=informed, sample_weights={"mode": "batch", "clusters": 2}), "data": clustered}


def swapping() -> dict[str, Any]:
    """Settings and data of a run that rotates two candidates."""
    candidates = [{"batch_size": 16}, {"batch_size": 8}]
    return {**small(swap={"mode": "rotate", "candidates": candidates, "turn": 32}, budget=256), "data": data()}


@pytest.mark.parametrize("settings", [weighted, swapping])
def test_every_reported_metric_is_registered(settings: Any) -> None:
    chosen = settings()
    images = chosen.pop("data")
    reports = run(chosen, data=images).metrics
    reported = {name for report in reports for name in report}
    assert {name for name, value in reports[-1].items() if isinstance(value, int | float)} <= set(METRICS)
    for report in reports:
        assert TrainingReport.from_dict(report).to_dict() == report
    if settings is weighted:
        assert {"weighted", "informed", "least_information", "alpha"} <= reported
    else:
        assert {"decision", "forecast", "forecast_std", "deviation"} <= reported


def test_titles_hold_label_and_unit() -> None:
    assert METRICS["samples_seen"].title == "samples seen (images)"
    assert METRICS["batches_per_update"].title == "micro-batches per update"
    assert all(metric.label for metric in METRICS.values())


def test_a_line_of_json_becomes_the_same_report() -> None:
    decision = {"action": "keep", "forecast": None, "forecast_std": None, "deviation": None}
    first = TrainingReport(samples_seen=64, batch_size=32, seconds=1.5, reference_loss=math.nan, decision=decision)
    assert {"forecast", "forecast_std", "deviation"} <= set(first.to_dict())  # as the policy says: there was none
    assert "information" not in first.to_dict()
    line = json.dumps({"candidate": "32x4", **first.to_dict()}).replace("NaN", "null")
    assert TrainingReport.from_dict(json.loads(line)) == first
    assert first.candidate == Candidate(32)
