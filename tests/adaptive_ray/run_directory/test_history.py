"""The history of a run on disk: truncated, corrupt, resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.history import History
from schedulers.events import Complete, Enter, Event, Expect, Fail, Report, Restart, Retry

EVENTS: list[Event] = [
    Expect(2), Enter("64"), Enter("128x4"), Report("64", 64.0, 5.25, 0.5), Report("128x4", 512.0, math.nan, math.inf),
    Restart("64", 64.0, "worker 0: process 7 (RayTrainWorker) died"), Fail("64", "failed: \u00fc\n\"x\""),
    Retry(("64",)), Complete("64"),
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    history = History(tmp_path / "events.jsonl")
    assert not history.events
    for event in EVENTS:
        history.append(event)
    return tmp_path / "events.jsonl"


def test_events_round_trip_as_strict_json(file: Path) -> None:
    assert repr(History(file).events) == repr(EVENTS)
    for line in file.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_reports_without_a_learning_rate_are_read(file: Path) -> None:
    lines = file.read_text(encoding="utf-8")
    assert '"learning_rate"' in lines
    file.write_text(lines.replace(', "learning_rate": "nan"', ""), encoding="utf-8")
    assert repr(History(file).events) == repr(EVENTS)


def test_a_history_truncated_anywhere_keeps_its_complete_lines(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(0, len(whole) + 1, 9):
        file.write_bytes(whole[:length])
        torn = History(file)
        lines = whole[:length].count(b"\n")
        assert repr(torn.events) == repr(EVENTS[:lines])
        torn.append(Expect(7))
        assert repr(History(file).events) == repr([*EVENTS[:lines], Expect(7)])


@pytest.mark.parametrize("line", [b"{}", b'{"event": "report"', b"\xff\xfe", b'{"event": "expect", "count": 2}', b"[]"])
def test_a_corrupt_line_is_reported(file: Path, line: bytes) -> None:
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:3], line, *lines[4:]]) + b"\n")
    with pytest.raises(UserError, match="line 4 is corrupt") as caught:
        History(file)
    assert str(file) in str(caught.value)


def test_seconds_are_those_of_all_sessions(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("adaptive_ray.run_directory.history.time.monotonic", lambda: now)
    first = History(file.with_name("two.jsonl"))
    now += 50
    first.append(Enter("64"))
    now += 1000  # killed, and continued much later
    second = History(file.with_name("two.jsonl"))
    now += 20
    second.append(Expect(1))
    assert second.seconds == pytest.approx(70)
    assert History(file.with_name("two.jsonl")).seconds == pytest.approx(70)
