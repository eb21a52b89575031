"""Messages about unknown and renamed settings."""

from __future__ import annotations

import pytest

from adaptive_ray.config.errors import RENAMED_KEYS
from tests.adaptive_ray.config.configurations import complaint


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("candidate", "candidates"),
        ("buget", "budget"),
        ("dataset.nmae", "dataset.name"),
        ("race.evaluation", "race.evaluations"),
        ("race.window.epoch", "race.window.epochs"),
        ("simclr.temprature", "simclr.temperature"),
        ("simclr.encoder.widht", "simclr.encoder.width"),
        ("simclr.optimizer.learning_rte", "simclr.optimizer.learning_rate"),
        ("tracking.url", "tracking.uri"),
        ("swap.enable", "swap.enabled"),
        ("race.rerace.att", "race.rerace.at"),
        ("explor", "explore"),
    ],
)
def test_unknown_setting_and_the_nearest_known_one(name: str, nearest: str) -> None:
    text = complaint(f"{name}=1")
    assert f"unknown setting {name!r}" in text
    assert f"did you mean {nearest!r}?" in text


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_renamed_settings_are_refused_with_their_new_names(old: str, new: str) -> None:
    text = complaint("candidates={from_clusters: {}}", f"{old}=1")
    assert f"setting {old!r} was renamed; use {new!r}" in text
    section, _, key = new.rpartition(".")
    known = complaint("candidates={from_clusters: {}}", f"{section}{'.' if section else ''}zzz=1")
    assert key in known.partition("known here: ")[2].split(", ")


@pytest.mark.parametrize("child", ["workers", "no_such_key"])
def test_a_renamed_section_with_any_key(child: str) -> None:
    assert "setting 'stretch' was renamed; use 'winner'" in complaint(f"stretch.{child}=2")


def test_renamed_values_are_refused_with_their_new_names() -> None:
    text = complaint("race.rerace=on_surprise")
    assert text.endswith("race.rerace = 'on_surprise': the value was renamed; use 'on_deviation'")


def test_unknown_setting_unlike_any_other() -> None:
    text = complaint("winner.zzz=1")
    assert "unknown setting 'winner.zzz'" in text
    assert "known here: workers" in text


@pytest.mark.parametrize("name", ["Candidates", "dataset.Name", "int", "trial.float"])
def test_unknown_setting_that_looks_like_a_type(name: str) -> None:
    assert f"unknown setting {name!r}" in complaint(f"{name}=1")
