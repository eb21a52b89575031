"""The examples in docs/ run as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.timeout(300)
def test_the_schedulers_example_compares_it_with_asha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("example_scheduler", DOCS / "example_scheduler.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "example_scheduler", example)
    spec.loader.exec_module(example)
    ours, asha = list(example.compare(str(tmp_path)))
    assert (ours[0], asha[0]) == ("loss extrapolation", "ASHA")
    for _, size, loss, spent in (ours, asha):
        assert size in example.SIZES
        assert loss < 0.5
        assert example.BUDGET <= spent < len(example.SIZES) * example.BUDGET
