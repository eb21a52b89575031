"""Formats the accuracies of a finished run and the reasons for missing results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Classifiers and the representations that they are trained on: entries of ``result.json``, which may be None.
PROBES = {"probe": "linear classifier", "knn": "20 nearest neighbours", "knn200": "200 nearest neighbours"}
REPRESENTATIONS = {"": "trained", "untrained_": "untrained", "pixel_": "raw pixels"}
ACCURACIES = tuple(f"{prefix}{probe}_accuracy" for probe in PROBES for prefix in REPRESENTATIONS)


def accuracies_of(prefix: str) -> tuple[str, ...]:
    """The entries of ``result.json`` for one representation, a key of ``REPRESENTATIONS``."""
    return tuple(f"{prefix}{probe}_accuracy" for probe in PROBES)


def percent(share: float | None) -> str:
    """0.912 -> "91.2 %"; None -> "-"."""
    return "-" if share is None else f"{100 * share:.1f} %"


def accuracy_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row per classifier: its name and the accuracy for each representation; with many classes also its top-5."""
    for probe, title in PROBES.items():
        for suffix, kind in (("", ""), ("_top5", ", top-5")):
            names = [f"{prefix}{probe}{suffix}_accuracy" for prefix in REPRESENTATIONS]
            if not suffix or any(name in result for name in names):
                yield [f"{title}{kind}", *(percent(result.get(name)) for name in names)]


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
