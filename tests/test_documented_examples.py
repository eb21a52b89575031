"""The examples in docs/ run as they are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(300)]

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_schedulers_example_compares_it_with_asha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("example_scheduler", DOCS / "example_scheduler.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)
    spec.loader.exec_module(example)
    cloudpickle.register_pickle_by_value(example)  # as a script's contents are: no worker can import it
    ours, asha = example.compare(str(tmp_path))
    assert (ours[0], asha[0]) == ("loss extrapolation", "ASHA")
    for _, size, loss, spent in (ours, asha):
        assert size in example.SIZES
        assert loss < 0.5
        assert spent >= example.BUDGET
    # ASHA compares who comes to a rung with those before: batches of 512 are there first, and nobody is worse.
    assert ours[3] < len(example.SIZES) * example.BUDGET / 2
