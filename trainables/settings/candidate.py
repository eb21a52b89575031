"""Candidates in settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from schedulers import Candidate


def _read(entry: Any) -> Any:
    if isinstance(entry, Mapping | Candidate):
        return entry
    if isinstance(entry, str) and re.fullmatch(r"\d+(x\d+)?", entry):
        return Candidate.parse(entry)
    return Candidate(entry)  # raises with the reason


def _write(candidate: Candidate) -> int | str:
    return candidate.batch_size if candidate.accumulation == 1 else candidate.key


#: A candidate in settings: 128, 128x4 or {batch_size: 128, accumulation: 4}. Serialised as 128 or 128x4.
CandidateSettings = Annotated[Candidate, BeforeValidator(_read), PlainSerializer(_write)]
