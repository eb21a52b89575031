"""The report of a training run, and the registry of its metrics: name, unit and where each is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

from schedulers import Candidate


@dataclass(frozen=True)
class Metric:
    """How a metric of a report is shown. All metrics are written to ``reports.jsonl``."""

    unit: str  # empty for dimensionless metrics
    label: str  # in tables and plots
    column: str | None = None  # in curves.json; None: not included
    logged: bool = False  # to MLflow, with samples_seen as the step

    @property
    def title(self) -> str:
        """Label with unit, for the axis of a plot."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """The metrics of a run at one evaluation. None: it does not apply to the run. NaN: unknown or diverged."""

    samples_seen: Annotated[int, Metric("images", "samples seen", column="samples")]
    seconds: Annotated[float, Metric("s", "training time", column="seconds", logged=True)] = math.nan
    batch_size: Annotated[int, Metric("images", "batch size", column="batch_sizes", logged=True)]
    accumulation: Annotated[int, Metric("batches", "accumulation", column="accumulations", logged=True)] = 1
    micro_batch: Annotated[int | None, Metric("images", "micro-batch")] = None
    workers: Annotated[int | None, Metric("", "workers", column="workers")] = None
    progress: Annotated[float, Metric("", "progress")] = math.nan
    learning_rate: Annotated[float, Metric("", "learning rate", logged=True)] = math.nan
    train_loss: Annotated[float, Metric("nats", "training loss", column="train_loss", logged=True)] = math.nan
    train_loss_above_chance: Annotated[float, Metric("nats", "training loss above chance", logged=True)] = math.nan
    images_per_second: Annotated[float, Metric("images/s", "throughput", column="images_per_second", logged=True)] = (
        math.nan
    )
    images_per_second_alone: Annotated[
        float | None, Metric("images/s", "throughput alone", column="images_per_second_alone", logged=True)
    ] = None
    #: Whether a winner continues with the workers that it has.
    in_place: bool | None = None
    data_wait: Annotated[float, Metric("", "fraction of time waiting for data", logged=True)] = math.nan
    reference_loss: Annotated[float, Metric("nats", "reference loss", column="reference_loss", logged=True)] = math.nan
    alignment: Annotated[float, Metric("", "alignment", column="alignment", logged=True)] = math.nan
    uniformity: Annotated[float, Metric("", "uniformity", column="uniformity", logged=True)] = math.nan
    rankme: Annotated[float, Metric("", "RankMe", column="rankme", logged=True)] = math.nan
    #: Of some reports only; see ``trainables.evaluation.online``.
    online_knn_accuracy: Annotated[
        float | None, Metric("", "online kNN accuracy", column="online_knn_accuracy", logged=True)
    ] = None
    images_per_update: Annotated[
        float, Metric("images", "images per update", column="images_per_update", logged=True)
    ] = math.nan
    # of adaptive accumulation
    batches_per_update: Annotated[
        float | None, Metric("", "micro-batches per update", column="batches_per_update", logged=True)
    ] = None
    information: Annotated[float | None, Metric("", "mean micro-batch score", column="information", logged=True)] = None
    least_information: Annotated[float | None, Metric("", "lowest micro-batch score", column="least_information")] = (
        None
    )
    informed: Annotated[float | None, Metric("", "fraction of updates that reached alpha", logged=True)] = None
    alpha: Annotated[float | None, Metric("", "alpha")] = None
    # of a policy that swaps the candidate
    forecast: Annotated[float | None, Metric("nats", "forecast", logged=True)] = None
    forecast_std: Annotated[float | None, Metric("nats", "standard deviation of the forecast")] = None
    deviation: Annotated[float | None, Metric("standard deviations", "forecast deviation", logged=True)] = None
    #: The policy's decision at this report; see ``schedulers.in_run.policy.SwapDecision.as_dict``.
    decision: Mapping[str, Any] | None = None
    #: Indices and weights of the ``most`` and ``least`` weighted images.
    weighted: Mapping[str, Sequence[tuple[int, float]]] | None = None
    checkpoint_path: str | None = None

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> TrainingReport:
        """Reads what ``to_dict`` returned, also from JSON, where NaN is null. Other entries are ignored."""
        names = [each.name for each in fields(cls)]
        return cls(**{name: entries[name] for name in names if entries.get(name) is not None})

    def to_dict(self) -> dict[str, Any]:
        """Returns the entries for Ray or JSON, without those that do not apply."""
        decided = self.decision or {}  # without a forecast, its entries are None
        return {name: value for name, value in vars(self).items() if value is not None or name in decided}

    @property
    def candidate(self) -> Candidate:
        """The candidate that was in use; a run may swap it."""
        return Candidate(self.batch_size, self.accumulation)


#: Metrics of a report by name.
METRICS: dict[str, Metric] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(TrainingReport, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
#: Column in ``curves.json`` of each metric that has one.
CURVE_COLUMNS = {name: metric.column for name, metric in METRICS.items() if metric.column is not None}
#: Metrics that are logged to MLflow.
LOGGED = tuple(name for name, metric in METRICS.items() if metric.logged)
