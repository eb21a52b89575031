"""Recorded runs and the sweeps that they form."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from adaptive_ray.errors import UserError
from adaptive_ray.replay.hardware import RECORDED
from schedulers import Candidate

#: Minimum length of a curve.
MIN_POINTS = 4

Axis = str  # "samples" or "seconds"


class Recording(BaseModel):
    """A complete run with a fixed batch size. Other entries of its file are ignored.

    Its accuracy is that of a probe after the last report, or of kNN during training (``knn_samples``).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    dataset: str = Field(min_length=1)
    batch_size: int = Field(ge=2)
    accumulation: int = Field(1, ge=1)
    seed: int = Field(ge=0)
    learning_rate_rule: str
    scenario: str = Field(
        default_factory=lambda known: f"{known.get('dataset')}, rule {known.get('learning_rate_rule')}"
    )
    samples: list[Annotated[FiniteFloat, Field(gt=0)]] = Field(min_length=MIN_POINTS)
    seconds: list[Annotated[FiniteFloat, Field(ge=0)]]
    train_loss: list[float | None]
    reference_loss: list[FiniteFloat]
    learning_rate: list[Annotated[FiniteFloat, Field(ge=0)]] = []
    probe_accuracy: float | None = Field(None, ge=0, le=1)
    knn_samples: list[Annotated[FiniteFloat, Field(gt=0)]] = []
    knn_accuracy: list[Annotated[float, Field(ge=0, le=1)]] = []

    @model_validator(mode="after")
    def _one_grid(self) -> Self:
        for name in ("seconds", "train_loss", "reference_loss"):
            if len(getattr(self, name)) != len(self.samples):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, samples has {len(self.samples)}")
        if self.learning_rate and len(self.learning_rate) != len(self.samples):
            raise ValueError(f"learning_rate has {len(self.learning_rate)} entries, samples has {len(self.samples)}")
        if len(self.knn_accuracy) != len(self.knn_samples):
            raise ValueError(
                f"knn_accuracy has {len(self.knn_accuracy)} entries, knn_samples has {len(self.knn_samples)}"
            )
        if self.probe_accuracy is None and not self.knn_samples:
            raise ValueError("an accuracy is missing: probe_accuracy, or knn_samples and knn_accuracy")
        for name in ("samples", "seconds", "knn_samples"):
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

    def accuracy_at(self, axis: Axis, at: float) -> float:
        """Returns the kNN accuracy at a point of the axis, interpolated."""
        return float(np.interp(np.interp(at, self.time(axis), self.samples), self.knn_samples, self.knn_accuracy))


@dataclass(frozen=True)
class Sweep:
    """The runs of one scenario, data set, learning-rate rule and seed, one per candidate.

    Args:
        hardware: That of the recordings' seconds; see ``hardware``.
    """

    scenario: str
    dataset: str
    learning_rate_rule: str
    seed: int
    runs: tuple[Recording, ...]
    hardware: str = RECORDED

    def __str__(self) -> str:
        return f"{self.scenario}, seed {self.seed}"

    @cached_property
    def by_key(self) -> dict[str, Recording]:
        return {run.key: run for run in self.runs}

    @property
    def watched(self) -> bool:
        """Whether all recordings have accuracies during training."""
        return all(run.knn_samples for run in self.runs)

    def accuracies(self, axis: Axis) -> dict[str, float] | None:
        """Returns the accuracy of each candidate at the end of the budget; None if it is unknown.

        With ``axis="samples"`` the accuracy after the last report is enough.
        """
        if self.watched:
            return {run.key: run.accuracy_at(axis, self.budget(axis)) for run in self.runs}
        final = {run.key: run.probe_accuracy for run in self.runs if run.probe_accuracy is not None}
        return final if axis == "samples" and len(final) == len(self.runs) else None

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
                    f"{self}: batch {run.key} first reports after {run.time(axis)[0]:g} {axis}, but another recording "
                    f"ends at {self.budget(axis):g}; record it with more reports, or leave it out"
                )

    def final_losses(self, axis: Axis) -> dict[str, float]:
        """Returns the reference loss of each candidate at the end of the budget."""
        return {run.key: run.loss_at(axis, self.budget(axis)) for run in self.runs}

    def at_equal_time(self) -> Sweep:
        """Returns the sweep as it would be with a budget in seconds: every schedule ends, and all report equally often.

        A slow candidate has a shorter schedule than its recording. It is read where the integral of the learning rate
        is that of the shorter schedule: compared with a run that was recorded with both budgets (``cifar-short`` and
        ``cifar-long``), losses are 0.1 to 0.2 too high in the whole run, while those of a run that is cut off are up to
        0.5 too high and end up to 0.4 too low. Recordings without learning rates are cut off. The candidates start from
        the same weights: before its first report, a candidate is interpolated from the highest first loss and the
        lowest first accuracy of all.
        """
        end = self.budget("seconds")
        first_loss = max(run.reference_loss[0] for run in self.runs)
        first_accuracy = min((run.knn_accuracy[0] for run in self.runs if run.knn_samples), default=0.0)
        runs = []
        for run in self.runs:
            share = end / run.seconds[-1]
            recorded = np.array([0.0, *run.samples])
            rate = np.array(run.learning_rate or np.ones(len(run.samples)))
            clock = np.concatenate([[0.0], np.cumsum(rate * np.diff(recorded))])
            spent = np.linspace(0, 1, len(run.samples) + 1)[1:]
            at = np.interp(share * np.interp(spent * recorded[-1], recorded, clock), clock, recorded)
            losses = np.interp(at, recorded, [first_loss, *run.reference_loss]).tolist()
            samples = (share * spent * recorded[-1]).tolist()
            update = {"seconds": (end * spent).tolist(), "samples": samples, "reference_loss": losses}
            if run.learning_rate:
                update["learning_rate"] = np.interp(spent * recorded[-1], run.samples, run.learning_rate).tolist()
            if run.knn_samples:
                known = np.interp(at, [0.0, *run.knn_samples], [first_accuracy, *run.knn_accuracy])
                update |= {"knn_samples": samples, "knn_accuracy": known.tolist()}
            runs.append(run.model_copy(update=update))
        return replace(self, runs=tuple(runs))
