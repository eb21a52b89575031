"""The events of a run. All decisions follow from their ordered history."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, asdict, dataclass
from typing import Any, get_args


@dataclass(frozen=True)
class Expect:
    """The number of candidates is known."""

    count: int


@dataclass(frozen=True)
class Enter:
    """A candidate enters the race."""

    candidate: Hashable


@dataclass(frozen=True)
class Report:
    """A candidate reports its loss and learning rate after ``samples`` samples and ``seconds`` of training."""

    candidate: Hashable
    samples: float
    loss: float
    seconds: float
    learning_rate: float = math.nan


@dataclass(frozen=True)
class Measure:
    """A candidate's throughput was measured while it had its device to itself, in samples per second."""

    candidate: Hashable
    throughput: float


@dataclass(frozen=True)
class Fail:
    """A candidate fails."""

    candidate: Hashable
    reason: str


@dataclass(frozen=True)
class Complete:
    """A candidate finishes."""

    candidate: Hashable


@dataclass(frozen=True)
class Restart:
    """A candidate lost a process or a node and resumes from its last checkpoint. No decision depends on it."""

    candidate: Hashable
    samples: float
    reason: str


@dataclass(frozen=True)
class Retry:
    """A user retries failed candidates."""

    candidates: tuple[Hashable, ...]


Event = Expect | Enter | Report | Measure | Fail | Complete | Restart | Retry

_KINDS = {kind.__name__.lower(): kind for kind in get_args(Event)}


def to_json(event: Event) -> dict[str, Any]:
    """Converts an event to a dictionary of strict JSON. Keys of candidates must be strings to be read back."""
    values = {name: _finite(value) for name, value in asdict(event).items()}
    return {"event": type(event).__name__.lower(), **values}


def from_json(entry: Mapping[str, Any]) -> Event:
    """Reads an event written by ``to_json``; unknown entries are ignored.

    Raises:
        ValueError: The entry is not an event.
    """
    try:
        kind = _KINDS[entry["event"]]
        values = {
            name: entry[name]
            for name, field in kind.__dataclass_fields__.items()
            if name in entry or field.default is MISSING
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{dict(entry)} is not an event: {error} is missing or unknown") from None
    for name in ("samples", "loss", "seconds", "learning_rate", "throughput"):
        if name in values:
            values[name] = float(values[name])
    if "candidates" in values:
        values["candidates"] = tuple(values["candidates"])
    event: Event = kind(**values)
    return event


def _finite(value: Any) -> Any:
    """Replaces nan and infinity, which JSON lacks, by strings that ``float`` reads."""
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
