"""With which workers a winner continues."""

from typing import Any

import pytest

from adaptive_ray.config.loading import parse_config
from adaptive_ray.config.plan import Plan
from adaptive_ray.experiment.race_control import RaceControl
from adaptive_ray.ray_cluster.layout import Layout, Workers
from schedulers import Race
from trainables.report import TrainingReport

CONFIG = parse_config({"dataset": {"name": "mnist5k"}, "candidates": [64, 128], "budget": {"epochs": 20}})
LAYOUT = Layout(Workers(1, 2.0, 0, 1 << 30), Workers(3, 4.0, 0, 4 << 30), 2)


@pytest.mark.parametrize(
    ("in_place", "joined", "expected"),
    [
        (True, False, {"workers": 1, "cpus": 4.0, "threads": 4, "memory": 4 << 30}),  # all that the others have freed
        (True, True, {"workers": 1, "cpus": 2.0, "threads": 2, "memory": 1 << 30}),  # what it has reserved in Ray
        (False, False, {"workers": 3, "cpus": 4.0, "threads": 4, "memory": 4 << 30}),
        (False, True, {"workers": 3, "cpus": 4.0, "threads": 4, "memory": 4 << 30}),
    ],
)
def test_resources_of_a_winner(in_place: bool, joined: bool, expected: dict[str, Any]) -> None:
    report = TrainingReport(samples_seen=640, batch_size=64, images_per_second_alone=100.0, in_place=in_place)
    control = RaceControl(CONFIG, Plan.of(CONFIG, 5_000), LAYOUT, {"64": [report]}, joined=joined)
    race = Race(["64", "128"], budget=100_000, window=10_000)
    race.report("64", 640, 3.0)
    race.fail("128", "failed")
    assert race.winner == "64"
    entries = {name: entry(race) for name, entry in control.winner_config().items()}
    assert entries == {**expected, "gpus": 0}
