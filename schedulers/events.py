"""What happens in a run, in order: the one history from which everything that was decided follows."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Expect:
    """There will be this many candidates."""

    count: int


@dataclass(frozen=True)
class Enter:
    """A candidate is added."""

    candidate: Hashable


@dataclass(frozen=True)
class Report:
    """A candidate has reported its loss after ``samples`` samples and ``seconds`` of training."""

    candidate: Hashable
    samples: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class Fail:
    """A candidate cannot continue."""

    candidate: Hashable
    reason: str


@dataclass(frozen=True)
class Complete:
    """A candidate will report no more."""

    candidate: Hashable


@dataclass(frozen=True)
class Restart:
    """A candidate lost a process or a node and continues from its last checkpoint; it changes no decision."""

    candidate: Hashable
    samples: float
    reason: str


@dataclass(frozen=True)
class Retry:
    """Candidates that failed are to be tried again, at a user's request."""

    candidates: tuple[Hashable, ...]


Event = Expect | Enter | Report | Fail | Complete | Restart | Retry

_KINDS = {kind.__name__.lower(): kind for kind in (Expect, Enter, Report, Fail, Complete, Restart, Retry)}


def to_json(event: Event) -> dict[str, Any]:
    """An event as a dictionary that every JSON reader understands. Candidates must be strings to come back."""
    values = {name: _finite(value) for name, value in asdict(event).items()}
    return {"event": type(event).__name__.lower(), **values}


def from_json(entry: Mapping[str, Any]) -> Event:
    """The event that ``to_json`` gave; entries that it did not write are ignored.

    Raises:
        ValueError: It is no event.
    """
    try:
        kind = _KINDS[entry["event"]]
        values = {name: entry[name] for name in kind.__dataclass_fields__}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{dict(entry)} is no event: {error} is missing or unknown") from None
    for name in ("samples", "loss", "seconds"):
        if name in values:
            values[name] = float(values[name])
    if "candidates" in values:
        values["candidates"] = tuple(values["candidates"])
    return kind(**values)


def _finite(value: Any) -> Any:
    """JSON has no nan and no infinity: they become their names, which ``float`` reads."""
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
