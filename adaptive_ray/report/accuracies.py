"""Accuracies of a finished run in words: a share, or "-" and why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: The probes, and what they were given: entries of ``result.json``, of which any may be None.
PROBES = {"probe": "linear probe", "knn": "20 nearest neighbours"}
REPRESENTATIONS = {"": "trained", "untrained_": "untrained", "pixel_": "raw pixels"}
ACCURACIES = tuple(f"{prefix}{probe}_accuracy" for probe in PROBES for prefix in REPRESENTATIONS)


def percent(share: float | None) -> str:
    """0.912 -> "91.2 %"; None -> "-"."""
    return "-" if share is None else f"{100 * share:.1f} %"


def accuracy_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each probe: its name, then the accuracy of each representation."""
    for probe, title in PROBES.items():
        yield [title, *(percent(result[f"{prefix}{probe}_accuracy"]) for prefix in REPRESENTATIONS)]


def reference_loss(result: Mapping[str, Any]) -> str:
    """How far the loss on held-out images has fallen, which needs no labels."""
    first, last = (
        "-" if loss is None else f"{loss:.3f}"
        for loss in (result.get("first_reference_loss"), result["reference_loss"])
    )
    return f"reference loss: {last} (at the first report {first})"


def missing(result: Mapping[str, Any]) -> Iterator[str]:
    """A line for each reason why something could not be evaluated."""
    groups: dict[str, list[str]] = {}
    for name, why in result.get("unavailable", {}).items():
        groups.setdefault(why, []).append(name)
    for why, names in groups.items():
        yield f"{_together(names)}: {why}"


def _together(names: list[str]) -> str:
    if set(ACCURACIES) <= set(names):
        names = ["probes", *(name for name in names if name not in ACCURACIES)]
    return ", ".join(name.replace("_", " ") for name in names)
