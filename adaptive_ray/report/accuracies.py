"""Formats the accuracies of a finished run and the reasons for missing results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Probes and the representations that they are trained on: entries of ``result.json``, which may be None.
PROBES = {"probe": "linear probe", "knn": "20 nearest neighbours"}
REPRESENTATIONS = {"": "trained", "untrained_": "untrained", "pixel_": "raw pixels"}
ACCURACIES = tuple(f"{prefix}{probe}_accuracy" for probe in PROBES for prefix in REPRESENTATIONS)


def percent(share: float | None) -> str:
    """0.912 -> "91.2 %"; None -> "-"."""
    return "-" if share is None else f"{100 * share:.1f} %"


def accuracy_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row per probe: its name and the accuracy for each representation."""
    for probe, title in PROBES.items():
        yield [title, *(percent(result[f"{prefix}{probe}_accuracy"]) for prefix in REPRESENTATIONS)]


def reference_loss(result: Mapping[str, Any]) -> str:
    """Formats the reference loss at the last and the first report."""
    first, last = (
        "-" if loss is None else f"{loss:.3f}"
        for loss in (result.get("first_reference_loss"), result["reference_loss"])
    )
    return f"reference loss: {last} (first report: {first})"


def missing(result: Mapping[str, Any]) -> Iterator[str]:
    """One line per reason why results are missing."""
    groups: dict[str, list[str]] = {}
    for name, why in result.get("unavailable", {}).items():
        groups.setdefault(why, []).append(name)
    for why, names in groups.items():
        yield f"{_together(names)}: {why}"


def _together(names: list[str]) -> str:
    if set(ACCURACIES) <= set(names):
        names = ["probes", *(name for name in names if name not in ACCURACIES)]
    return ", ".join(name.replace("_", " ") for name in names)
