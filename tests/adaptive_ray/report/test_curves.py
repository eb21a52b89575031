"""Plots of curves and decisions, also with gaps."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adaptive_ray.report import curves as pictures
from adaptive_ray.run_directory.directory import describe
from schedulers import FORECASTERS, Race
from trainables.report import CURVE_COLUMNS

BUDGET, WINDOW, EVERY = 16_384, 4096, 512
RATE = {"32": 1.0, "64": 1.6, "128": 0.8}


def loss(key: str, samples: float) -> float:
    return 3.0 + 3.0 * (RATE[key] * samples / 1000 + 1) ** -0.5


def raced(keys: tuple[str, ...] = ("32", "64", "128"), **settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Curves and decisions of a run; the winner trains to the end of the budget."""
    race = Race(keys, budget=BUDGET, window=WINDOW, **settings)
    curves: dict[str, Any] = {
        key: {"batch_size": int(key)} | {name: [] for name in CURVE_COLUMNS.values()} for key in keys
    }
    decisions = []
    for samples in range(EVERY, BUDGET + 1, EVERY):
        for key in keys:
            if race.state(key) == "pruned" or (samples > WINDOW and not race.over):
                continue
            curves[key]["samples"].append(samples)
            curves[key]["batch_sizes"].append(int(key))
            curves[key]["accumulations"].append(1)
            curves[key]["reference_loss"].append(loss(key, samples))
            curves[key]["train_loss"].append(loss(key, samples) + math.log(int(key)))
            decisions += [describe(decision) for decision in race.report(key, samples, loss(key, samples))]
    assert race.winner == min(keys, key=lambda key: loss(key, BUDGET))
    return curves, decisions


def parsed(svg: str) -> tuple[ET.Element, str]:
    """Parses SVG; returns its root and text."""
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return root, " ".join("".join(root.itertext()).split())


class TestForecastsAtDecision:
    @pytest.mark.parametrize("prune_below", [0.0, 0.2])
    @pytest.mark.parametrize("name", ["joint", "per_curve", "last_value"])
    def test_plots_show_the_forecasts_of_the_decision(self, name: str, prune_below: float) -> None:
        curves, decisions = raced(prune_below=prune_below, forecaster=FORECASTERS[name]())
        paths = pictures.forecasts_at_decision(decisions)
        assert set(paths) == set(curves)
        final = {entry["candidate"]: entry for entry in decisions if entry["state"] in ("won", "pruned")}
        for key, path in paths.items():
            assert path[0][0] == final[key]["samples"]
            assert path[-1][0] == BUDGET
            assert path[-1][1] == pytest.approx((final[key]["forecast"]["mean"], final[key]["forecast"]["std"]))

    def test_a_later_race_does_not_change_them(self) -> None:
        _, decisions = raced()
        later = [{**entry, "path": [[0.0, 99.0, 1.0]]} for entry in decisions]
        assert pictures.forecasts_at_decision([*decisions, *later]) == pictures.forecasts_at_decision(decisions)

    def test_a_candidate_without_a_forecast_has_none(self) -> None:
        failed = {"candidate": "32", "state": "pruned", "samples": 0.0, "path": []}
        unknown = {"candidate": "64", "state": "pruned", "samples": 9.0, "path": [[9.0, 3.0, None]]}
        assert pictures.forecasts_at_decision([failed, unknown]) == {"32": [], "64": []}


class TestLossCurves:
    def test_labels(self) -> None:
        curves, decisions = raced()
        _, text = parsed(pictures.loss_curves(curves, decisions, "64"))
        for label in ("32", "64 (chosen)", "128", "Training loss (not comparable", "samples seen (images)"):
            assert label in text
        assert "32 (chosen)" not in text

    def test_each_candidate_has_points_a_forecast_and_an_interval(self) -> None:
        curves, decisions = raced()
        svg = pictures.loss_curves(curves, decisions, "64")
        assert svg.count("stroke-dasharray") >= 3
        assert svg.count('id="FillBetweenPolyCollection_') == 3
        for colour in ("#0072b2", "#d55e00", "#009e73"):
            assert colour in svg.lower()

    def test_equal_input_gives_equal_files(self) -> None:
        curves, decisions = raced()
        svgs = {pictures.loss_curves(curves, decisions, "64") for _ in range(2)}
        assert len(svgs) == 1

    def test_a_candidate_with_nan_loss(self) -> None:
        curves, decisions = raced()
        curves["128"]["reference_loss"] = curves["128"]["train_loss"] = [None] * len(curves["128"]["samples"])
        svg = pictures.loss_curves(curves, decisions, "64")
        parsed(svg)
        assert "nan" not in svg

    def test_more_candidates_than_colours(self) -> None:
        curves, _ = raced(("32", "64"))
        many = {str(size): curves["32"] | {"batch_size": size} for size in range(10, 20)}
        decisions = [{"candidate": key, "state": "pruned", "samples": 2048.0} for key in many]
        _, text = parsed(pictures.loss_curves(many, decisions, "10"))
        assert "19" in text


class TestBatchSizes:
    def test_decisions_are_marked_once_in_the_legend(self) -> None:
        curves, decisions = raced()
        _, text = parsed(pictures.batch_sizes(curves, decisions, "64"))
        assert text.count("pruned") == 1
        assert text.count("won") == 1
        for size in ("32", "64", "128"):
            assert size in text

    def test_a_decision_about_one_without_a_curve(self) -> None:
        curves, decisions = raced(("32", "64"))
        failed = {"candidate": "128", "state": "pruned", "samples": 0.0}
        _, text = parsed(pictures.batch_sizes(curves, [failed, *decisions], "64"))
        assert "128" not in text

    def test_one_size_with_and_without_accumulation_are_two_rows(self) -> None:
        curves, decisions = raced(("32", "64"))
        curve = curves.pop("32")
        columns = {"batch_sizes": [64] * len(curve["samples"]), "accumulations": [2] * len(curve["samples"])}
        curves["64x2"] = curve | {"batch_size": 64, "accumulation": 2, **columns}
        root, text = parsed(pictures.batch_sizes(curves, decisions, "64"))
        rows = [element.text for element in root.iter() if element.text in ("64", "64x2")]
        assert rows == ["64", "64x2"]
        assert "won" in text

    def test_a_single_candidate(self) -> None:
        curves, decisions = raced(("64",))
        _, text = parsed(pictures.batch_sizes(curves, decisions, "64"))
        assert "pruned" not in text


def test_accuracies() -> None:
    result = {
        "probe_accuracy": 0.9123,
        "untrained_probe_accuracy": 0.5,
        "pixel_probe_accuracy": 1.0,
        "knn_accuracy": 0.0,
        "untrained_knn_accuracy": 0.25,
        "pixel_knn_accuracy": 0.3333,
        "knn200_accuracy": 0.8765,
    }
    _, text = parsed(pictures.accuracies(result))
    for number in ("91.2 %", "50.0 %", "100.0 %", "0.0 %", "25.0 %", "33.3 %", "87.6 %"):
        assert number in text
    for label in ("trained encoder", "untrained encoder", "raw pixels", "linear classifier", "200 nearest neighbours"):
        assert label in text


def test_online_accuracy_over_samples_and_seconds() -> None:
    measured = {"samples": [100, 200, 300], "seconds": [1.0, 2.0, 4.0], "online_knn_accuracy": [0.25, None, 0.5]}
    curves = {"64": measured, "32": measured | {"online_knn_accuracy": [None, None, None]}}
    _, text = parsed(pictures.online_accuracy(curves, "64"))
    for label in ("64 (chosen)", "samples seen (images)", "training time (s)", "accuracy on held-out images, %"):
        assert label in text
    assert pictures.online_accuracy({"32": curves["32"]}, "32") == ""
    assert pictures.online_accuracy({"32": {"samples": [1], "seconds": [1.0]}}, "32") == ""  # of an earlier version


class TestNeighbours:
    COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [0, 200, 200]], dtype=np.uint8)

    def images(self) -> Any:
        return np.tile(self.COLOURS[:, :, None, None], (1, 1, 8, 8))

    @staticmethod
    def colours_in(picture: Image.Image, row: int) -> list[tuple[int, ...]]:
        """The distinct colours from left to right, without margins and blended edges."""
        pixels = np.asarray(picture.convert("RGB"))[row]
        found: list[tuple[int, ...]] = []
        for pixel in map(tuple, pixels.tolist()):
            if set(pixel) <= {0, 200} and (not found or found[-1] != pixel):
                found.append(pixel)
        return found

    def test_one_row_per_held_out_image_nearest_first(self) -> None:
        nearest = self.images()[[[0, 2, 3, 4]]]
        png = pictures.neighbours(np.zeros((1, 3, 8, 8), dtype=np.uint8), nearest)
        picture = Image.open(io.BytesIO(png))
        assert picture.format == "PNG"
        order = [tuple(self.COLOURS[index].tolist()) for index in (0, 2, 3, 4)]
        assert self.colours_in(picture, picture.height * 2 // 3) == [(0, 0, 0), *order]

    def test_grey_images(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
        png = pictures.neighbours(images[:2], images[[[1, 2, 3], [0, 1, 4]]])
        Image.open(io.BytesIO(png)).verify()
