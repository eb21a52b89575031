"""The report of a finished run: self-contained, deterministic, also with failed candidates."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adaptive_ray import __version__
from adaptive_ray.config.loading import load_config
from adaptive_ray.errors import UserError
from adaptive_ray.report.accuracies import ACCURACIES
from adaptive_ray.report.decisions import last_decisions
from adaptive_ray.report.page import write_report
from adaptive_ray.run_directory.directory import RunDirectory, describe
from schedulers import Candidate, Decision, Race, State
from schedulers.in_run.swap import SwapOnDeviation
from trainables.report import TrainingReport

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"
BUDGET, WINDOW, EVERY = 16_384, 4096, 512
RATE = {32: 1.0, 64: 1.6, 128: 0.8}
RESULT = {
    "probe_accuracy": 0.9123,
    "untrained_probe_accuracy": 0.5,
    "pixel_probe_accuracy": 0.7,
    "knn_accuracy": 0.877,
    "untrained_knn_accuracy": 0.4,
    "pixel_knn_accuracy": 0.6,
    "knn200_accuracy": 0.861,
    "knn200_top5_accuracy": 0.999,
    "first_reference_loss": 4.6,
    "reference_loss": 3.6,
    "budget": BUDGET,
    "explore_fraction": 0.37,
    "samples_explored": 6000,
    "seconds": 123.4,
}


def loss(size: int, samples: int) -> float:
    return 3.0 + 3.0 * (RATE[size] * samples / 1000 + 1) ** -0.5


def finished(
    runs_dir: Path,
    sizes: tuple[int, ...] = (32, 64, 128),
    *,
    nan_from: dict[int, int] | None = None,
    crashed: dict[int, str] | None = None,
    settings: tuple[str, ...] = (),
) -> RunDirectory:
    """The directory of a finished run, with the decisions of a real race.

    Args:
        nan_from: The samples from which a candidate's loss is nan.
        crashed: Why a candidate failed before its first report.
    """
    config = load_config(QUICKSTART, [f"runs_dir={runs_dir}", f"candidates={list(sizes)}", *settings])
    directory = RunDirectory.create(config, "demo")
    race = Race([str(size) for size in sizes], budget=BUDGET, window=WINDOW)

    def write(decisions: list[Decision]) -> None:
        for decision in decisions:
            directory.append_decision(describe(decision))

    for size, reason in (crashed or {}).items():
        write(race.fail(str(size), reason))
    for samples in range(EVERY, BUDGET + 1, EVERY):
        for size in sizes:
            key = str(size)
            if race.state(key) in (State.PRUNED, State.WAITING) or (race.over and key != race.winner):
                continue
            value = math.nan if samples >= (nan_from or {}).get(size, BUDGET + 1) else loss(size, samples)
            write(race.report(key, samples, value, samples / 100))
            report = TrainingReport(
                batch_size=size,
                samples_seen=samples,
                seconds=samples / 100,
                workers=1,
                reference_loss=value,
                train_loss=value + math.log(size),
                images_per_second=100.0,
            )
            directory.append_report(key, report)
    assert race.winner is not None
    directory.write_json("curves.json", directory.curves())
    chosen = {"winner": race.winner, "chosen_batch_size": int(str(race.winner)), "chosen_accumulation": 1}
    directory.write_json("result.json", RESULT | chosen | {"samples_seen": BUDGET})
    Image.new("RGB", (20, 10), (10, 200, 30)).save(directory.path / "neighbours.png")
    return directory


class Page(HTMLParser):
    """Tags and tables of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.classes: list[str] = []
        self._cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
            self.classes.append(dict(attrs).get("class") or "")
        self._cell = tag in ("td", "th")
        if self._cell:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data

    @property
    def rows(self) -> list[list[str]]:
        """The table of candidates."""
        return self.tables[0]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    directory = finished(tmp_path_factory.mktemp("demo"))
    assert write_report(directory) == directory.path / "report.html"
    return directory


@pytest.fixture(scope="module")
def text(demo: RunDirectory) -> str:
    return (demo.path / "report.html").read_text()


class TestContent:
    def test_the_winner(self, text: str) -> None:
        assert "<h1>Batch size 64 was chosen</h1>" in text
        assert "64 (chosen)" in text
        page = Page(text)
        assert [css for css in page.classes if css] == ["won", "pruned", "pruned"]
        assert page.rows[1][0] == "64"

    def test_numbers(self, text: str) -> None:
        for number in ("91.2 %", "87.7 %", "16,384", "37 %", "123 s"):
            assert number in text
        assert f"adaptive_ray {__version__}" in text
        assert "Run demo on mnist5k" in text

    def test_the_table(self, text: str, demo: RunDirectory) -> None:
        head, *rows = Page(text).rows
        assert head[0] == "batch size"
        assert head[-1] == "reason"
        assert rows[0][0] == "64"
        assert {row[0] for row in rows} == {"64", "32", "128"}
        reasons = {entry["candidate"]: entry["reason"] for entry in demo.decisions()}
        assert {row[0]: row[-1] for row in rows} == reasons

    def test_the_accuracies(self, text: str) -> None:
        assert Page(text).tables[1] == [
            ["held-out accuracy", "trained", "untrained", "raw pixels"],
            ["linear classifier", "91.2 %", "50.0 %", "70.0 %"],
            ["20 nearest neighbours", "87.7 %", "40.0 %", "60.0 %"],
            ["200 nearest neighbours", "86.1 %", "-", "-"],
            ["200 nearest neighbours, top-5", "99.9 %", "-", "-"],
        ]

    def test_pictures(self, text: str, demo: RunDirectory) -> None:
        page = Page(text)
        assert page.count("svg") == 3
        (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
        assert image["alt"]
        data = (image["src"] or "").removeprefix("data:image/png;base64,")
        assert base64.b64decode(data) == (demo.path / "neighbours.png").read_bytes()
        Image.open(io.BytesIO(base64.b64decode(data))).verify()

    def test_the_configuration(self, text: str) -> None:
        assert "candidates:\n- 32\n- 64\n- 128\n" in text


class TestSelfContained:
    def test_nothing_is_loaded(self, text: str) -> None:
        page = Page(text)
        assert page.count("script") == page.count("link") == page.count("iframe") == page.count("base") == 0
        for tag, attributes in page.tags:
            for name, value in attributes.items():
                if name.split(":")[-1] in ("src", "srcset", "href", "data", "poster", "action", "background"):
                    assert (value or "").startswith(("data:", "#")), (tag, name, value)
        assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", text))
        assert "@import" not in text

    def test_addresses_are_names_only(self, text: str) -> None:
        rest = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)  # RDF: says what made the picture
        rest = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", rest)
        assert re.findall(r"\w*:?//[^\s\"<]*", re.sub(r"base64,[^\"]*", "", rest)) == []

    def test_rebuilding_gives_the_same_file(self, demo: RunDirectory, text: str) -> None:
        (demo.path / "report.html").write_text("corrupt")
        write_report(RunDirectory.open(demo.path))
        assert (demo.path / "report.html").read_text() == text


class TestFailures:
    def page(self, directory: RunDirectory) -> Page:
        page = Page(write_report(directory).read_text())
        assert page.count("svg") == 3
        return page

    def test_a_loss_that_became_nan(self, tmp_path: Path) -> None:
        page = self.page(finished(tmp_path, nan_from={128: 1536}))
        (row,) = [row for row in page.rows if row[0] == "128"]
        assert "loss became nan after 1,536 samples" in row

    def test_nan_from_the_first_report_on(self, tmp_path: Path) -> None:
        page = self.page(finished(tmp_path, nan_from={128: EVERY}))
        (row,) = [row for row in page.rows if row[0] == "128"]
        assert row[1:5] == ["- at 0", "-", "-", "-"]

    def test_a_crash_before_the_first_report(self, tmp_path: Path) -> None:
        reason = "<b>RuntimeError</b>: [/tmp/x] & more"
        page = self.page(finished(tmp_path, crashed={128: reason}))
        (row,) = [row for row in page.rows if row[0] == "128"]
        assert row[-1] == reason  # as text, not as markup
        assert len(page.rows) == 4

    def test_one_candidate_left_after_a_crash(self, tmp_path: Path) -> None:
        page = self.page(finished(tmp_path, (32, 64), crashed={32: "out of memory"}))
        assert [row[0] for row in page.rows[1:]] == ["64", "32"]

    def test_a_single_candidate(self, tmp_path: Path) -> None:
        page = self.page(finished(tmp_path, (64,)))
        assert [row[0] for row in page.rows[1:]] == ["64"]
        assert page.rows[1][-1] == "only candidate"


def test_an_unfinished_run(tmp_path: Path) -> None:
    directory = finished(tmp_path, (32, 64))
    (directory.path / "result.json").unlink()
    with pytest.raises(UserError, match="the run is not finished"):
        write_report(directory)
    assert not (directory.path / "report.html").exists()


def test_a_missing_file(tmp_path: Path) -> None:
    directory = finished(tmp_path, (32, 64))
    (directory.path / "curves.json").unlink()
    with pytest.raises(UserError, match=r"curves\.json"):
        write_report(directory)


def test_missing_results_have_reasons(tmp_path: Path) -> None:
    """Unlabelled images have neighbours and a loss; missing plots are left out."""
    directory = finished(tmp_path, (32, 64))
    why = dict.fromkeys(ACCURACIES, "the images have no labels")
    result = directory.read_json("result.json") | dict.fromkeys(ACCURACIES) | {"unavailable": why}
    directory.write_json("result.json", result)
    text = write_report(directory).read_text()
    assert text.count("<b>-</b>") == 2
    assert "<li>probes: the images have no labels</li>" in text
    assert "accuracy on held-out images" not in text
    assert "Reference loss: 3.600 (first report: 4.600)" in text
    assert "nearest training images" in text

    (directory.path / "neighbours.png").unlink()
    why = {"neighbours.png": "MemoryError", "untrained_knn_accuracy": "RuntimeError: no weights"}
    directory.write_json("result.json", result | RESULT | {"untrained_knn_accuracy": None, "unavailable": why})
    text = write_report(directory).read_text()
    assert "<li>neighbours.png: MemoryError</li>" in text
    assert "<li>untrained knn accuracy: RuntimeError: no weights</li>" in text
    assert "nearest training images" not in text
    assert "accuracy on held-out images" in text


def test_a_winner_with_accumulation(tmp_path: Path) -> None:
    directory = finished(tmp_path, (32, 64))
    for name in ("decisions.jsonl", "reports.jsonl"):
        file = directory.path / name
        renamed = '"candidate": "64x4", "accumulation": 4'
        text = file.read_text().replace(', "accumulation": 1', "")
        file.write_text(text.replace('"candidate": "64"', renamed))
    directory.write_json("curves.json", directory.curves())
    directory.write_json(
        "result.json", directory.read_json("result.json") | {"winner": "64x4", "chosen_accumulation": 4}
    )
    text = write_report(directory).read_text()
    assert "<h1>Batch size 64x4 was chosen</h1>" in text
    assert "64x4 (chosen)" in text
    assert Page(text).rows[1][0] == "64x4"


def test_forecast_deviations_of_a_run_that_swapped(tmp_path: Path) -> None:
    directory = finished(tmp_path, (32, 64))
    policy = SwapOnDeviation([Candidate(64), Candidate(32)], budget=BUDGET)
    for samples in range(EVERY, BUDGET + 1, EVERY):
        loss_now = loss(64, min(samples, BUDGET // 5))  # it stops falling
        if decision := policy.report(samples, loss_now, samples / 100):
            directory.append_swap(decision.as_dict())
    assert any(decision["action"] == "swap" for decision in directory.swaps())
    text = write_report(directory).read_text()
    assert "Forecast deviations and swaps" in text
    assert ">swap</text>" in text
    assert "Forecast deviations" not in write_report(finished(tmp_path / "other", (32, 64))).read_text()


def test_accuracy_during_training(tmp_path: Path) -> None:
    directory = finished(tmp_path, (32, 64))
    assert "Accuracy during training" not in write_report(directory).read_text()
    curves = directory.read_json("curves.json")
    for curve in curves.values():
        points = len(curve["samples"])
        curve["online_knn_accuracy"] = [row / points if row % 4 == 3 else None for row in range(points)]
    directory.write_json("curves.json", curves)
    text = write_report(directory).read_text()
    assert "<h2>Accuracy during training</h2>" in text
    assert "training time (s)" in text


def test_last_decisions() -> None:
    def entry(candidate: str, state: str) -> dict[str, Any]:
        return {"candidate": candidate, "state": state}

    decisions = [entry("64", "waiting"), entry("32", "pruned"), entry("128", "waiting"), entry("64", "won")]
    assert last_decisions(decisions) == [entry("64", "won"), entry("32", "pruned"), entry("128", "waiting")]
    assert last_decisions([]) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_shows_it(demo: RunDirectory, text: str, tmp_path: Path) -> None:
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (demo.path / "report.html").as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    page = Page(shown)
    assert page.count("svg") == 3
    assert page.rows == Page(text).rows
    assert len(page.rows) == 4
    assert "Batch size 64 was chosen" in shown


def test_informed_updates_and_weighted_images_are_shown(tmp_path: Path) -> None:
    directory = finished(tmp_path, settings=("accumulation={until: information, alpha: 2}",))
    curves = directory.read_json("curves.json")
    for curve in curves.values():
        points = len(curve["samples"])
        curve |= {"batches_per_update": [2.5] * points, "information": [0.8] * points}
        curve["least_information"] = [0.6] * points
        curve["images_per_update"] = [2.5 * curve["batch_size"]] * points
    directory.write_json("curves.json", curves)
    plain = write_report(directory).read_text()
    assert "<h2>Adaptive accumulation</h2>" in plain
    assert "micro-batches per update" in plain
    assert "<h2>Sample weights</h2>" not in plain
    Image.new("RGB", (30, 10), (200, 30, 10)).save(directory.path / "weights.png")
    assert Page(write_report(directory).read_text()).count("img") == Page(plain).count("img") + 1
