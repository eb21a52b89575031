"""Recorded runs, one JSON file each, and the sweeps that they form."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from adaptive_ray.errors import UserError
from schedulers import Candidate

#: Minimum length of a curve.
MIN_POINTS = 4

Axis = str  # "samples" or "seconds"


class Recording(BaseModel):
    """A complete run with a fixed batch size. Other entries of its file are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    dataset: str = Field(min_length=1)
    batch_size: int = Field(ge=2)
    accumulation: int = Field(1, ge=1)
    seed: int = Field(ge=0)
    learning_rate_rule: str
    samples: list[Annotated[FiniteFloat, Field(gt=0)]] = Field(min_length=MIN_POINTS)
    seconds: list[Annotated[FiniteFloat, Field(ge=0)]]
    train_loss: list[float | None]
    reference_loss: list[FiniteFloat]
    probe_accuracy: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _one_grid(self) -> Self:
        for name in ("seconds", "train_loss", "reference_loss"):
            if len(getattr(self, name)) != len(self.samples):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, samples has {len(self.samples)}")
        for name in ("samples", "seconds"):
            values = getattr(self, name)
            if any(after <= before for before, after in itertools.pairwise(values)):
                raise ValueError(f"{name} must be strictly increasing")
        return self

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.batch_size, self.accumulation)

    @property
    def key(self) -> str:
        return self.candidate.key

    def time(self, axis: Axis) -> NDArray[np.float64]:
        """Returns the samples or seconds of the reports."""
        return np.asarray(self.samples if axis == "samples" else self.seconds, dtype=float)

    @property
    def throughput(self) -> float:
        """Samples per second over the whole run."""
        return self.samples[-1] / self.seconds[-1]

    def count(self, axis: Axis, until: float) -> int:
        """Returns the number of reports up to a point of the axis."""
        return int(np.sum(self.time(axis) <= until))

    def loss_at(self, axis: Axis, at: float) -> float:
        """Returns the reference loss at a point of the axis, interpolated."""
        return float(np.interp(at, self.time(axis), self.reference_loss))


@dataclass(frozen=True)
class Sweep:
    """The runs of one data set, learning-rate rule and seed, one per candidate."""

    dataset: str
    learning_rate_rule: str
    seed: int
    runs: tuple[Recording, ...]

    @cached_property
    def by_key(self) -> dict[str, Recording]:
        return {run.key: run for run in self.runs}

    def budget(self, axis: Axis) -> float:
        """Returns the samples or seconds that every recording reaches."""
        return float(min(run.time(axis)[-1] for run in self.runs))

    def counts(self, axis: Axis) -> dict[str, int]:
        """Returns the number of reports of each candidate within the budget."""
        return {run.key: run.count(axis, self.budget(axis)) for run in self.runs}

    def check(self, axis: Axis) -> None:
        """Raises ``UserError`` if a candidate has no report within the budget."""
        for run in self.runs:
            if run.time(axis)[0] > self.budget(axis):
                raise UserError(
                    f"{self.dataset}, rule {self.learning_rate_rule}, seed {self.seed}: batch {run.key} first reports "
                    f"after {run.time(axis)[0]:g} {axis}, but another recording ends at {self.budget(axis):g}; "
                    f"record it with more reports, or leave it out"
                )

    def final_losses(self, axis: Axis) -> dict[str, float]:
        """Returns the reference loss of each candidate at the end of the budget."""
        return {run.key: run.loss_at(axis, self.budget(axis)) for run in self.runs}


def load_sweeps(directory: Path) -> list[Sweep]:
    """Loads every ``*.json`` file below a directory.

    Raises:
        UserError: There is no file, one is not a recording, a run was recorded twice, or no sweep has two candidates.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give one with recorded runs")
    runs = [_read(file) for file in sorted(directory.rglob("*.json"))]
    if not runs:
        raise UserError(f"{directory} contains no recorded runs (*.json); record some with benchmarks/record_curves.py")
    sweeps: dict[tuple[str, str, int], list[Recording]] = {}
    for run in runs:
        sweeps.setdefault((run.dataset, run.learning_rate_rule, run.seed), []).append(run)
    for (dataset, rule, seed), members in sweeps.items():
        key, count = Counter(run.key for run in members).most_common(1)[0]
        if count > 1:
            raise UserError(
                f"{directory}: {count} recordings of {dataset}, rule {rule}, seed {seed}, batch {key}; keep one"
            )
    whole = [
        Sweep(*identity, tuple(sorted(members, key=lambda run: run.candidate)))
        for identity, members in sorted(sweeps.items())
        if len(members) > 1
    ]
    if not whole:
        raise UserError(f"{directory}: no data set, rule and seed has two batch sizes, so there is no choice to replay")
    return whole


def _read(file: Path) -> Recording:
    try:
        return Recording.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{file} is not a recorded run: {f'{place}: ' if place else ''}{message}") from None
