"""Decisions of a race as rows and as a table."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adaptive_ray.report.decisions import decision_rows, decision_table
from adaptive_ray.run_directory.directory import RunDirectory, describe
from schedulers import Race, State
from tests.adaptive_ray.report.test_terminal import BUDGET, EVERY, SPEED, WINDOW, loss


@pytest.fixture
def decisions(tmp_path: Path) -> list[dict[str, Any]]:
    """The last decisions of a race: one candidate lost, one won, one failed before its first report."""
    race = Race(["32", "64", "128"], budget=BUDGET, window=WINDOW, prune_below=0.0)
    entries = {str(d.key): describe(d) for d in race.fail("128", "OutOfMemoryError")}
    for samples in range(EVERY, WINDOW + 1, EVERY):
        for key in ("32", "64"):
            for decision in race.report(key, samples, loss(key, samples), samples / SPEED[key]):
                entries[str(decision.key)] = describe(decision)
    assert race.winner == "32"
    file = RunDirectory(tmp_path)
    for key in ("64", "128", "32"):
        file.append_decision(entries[key])
    return file.decisions()


class TestRows:
    def test_rows(self, decisions: list[dict[str, Any]]) -> None:
        first, lost, failed = decision_rows(decisions)
        assert [row["batch size"] for row in (first, lost, failed)] == ["32", "64", "128"]  # the winner first
        assert [row["state"] for row in (first, lost, failed)] == ["won", "pruned", "pruned"]
        assert first["reference loss"] == f"{loss('32', WINDOW):.3f} at 4,096"
        assert first["images/s alone (in the race)"] == "- (100)"
        assert lost["images/s alone (in the race)"] == "- (200)"
        assert re.fullmatch(r"1\.\d\d ± \d+ %", first["statistical efficiency"])
        assert re.fullmatch(r"0\.\d\d ± \d+ %", lost["statistical efficiency"])
        assert re.fullmatch(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", first["forecast (80 %)"])

    def test_rates_of_two_candidates_are_reciprocal(self, decisions: list[dict[str, Any]]) -> None:
        rates = [float(row["statistical efficiency"].split()[0]) for row in decision_rows(decisions)[:2]]
        assert rates[0] * rates[1] == pytest.approx(1, abs=0.02)
        assert rates[0] / rates[1] == pytest.approx(1.5, rel=0.1)

    def test_a_rate_is_a_factor_with_its_uncertainty_in_percent(self, decisions: list[dict[str, Any]]) -> None:
        entry = decisions[0] | {"log_rate": [math.log(1.6), math.log(1.05)]}
        assert decision_rows([entry])[0]["statistical efficiency"] == "1.60 ± 5 %"

    def test_one_that_never_reported(self, decisions: list[dict[str, Any]]) -> None:
        failed = decision_rows(decisions)[2]
        assert failed == {
            "batch size": "128",
            "reference loss": "- at 0",
            "forecast (80 %)": "-",
            "statistical efficiency": "-",
            "images/s alone (in the race)": "-",
            "state": "pruned",
            "reason": "OutOfMemoryError",
        }


class TestTable:
    @staticmethod
    def rendered(entries: list[dict[str, Any]]) -> str:
        out = io.StringIO()
        Console(file=out, width=200).print(decision_table(entries))
        return out.getvalue()

    def test_every_cell_is_there(self, decisions: list[dict[str, Any]]) -> None:
        text = self.rendered(decisions)
        for row in decision_rows(decisions):
            (line,) = [line for line in text.splitlines() if f" {row['batch size']} " in line.split("at")[0]]
            assert all(value in line for value in row.values())
        for title in ("batch size", "statistical efficiency", "state", "reason"):
            assert title in text

    @pytest.mark.parametrize(
        "reason",
        ["[Errno 12] no memory", "[enforce fail at alloc.cpp:117] no memory", "no [/tmp/x] there", "[rank0]: failed"],
    )
    def test_reasons_are_printed_literally(self, decisions: list[dict[str, Any]], reason: str) -> None:
        """Square brackets in error messages are not parsed as markup."""
        (entry,) = [entry for entry in decisions if entry["state"] == State.WON]
        assert reason in self.rendered([entry | {"reason": reason}])
