"""Registry of the metrics that training reports: name, unit and where each is shown."""

from __future__ import annotations

from dataclasses import dataclass

#: The metric that candidates are compared by.
METRIC = "reference_loss"


@dataclass(frozen=True)
class Metric:
    """A metric of a training report. All registered metrics are written to ``reports.jsonl``.

    Args:
        name: Key in reports and name in MLflow.
        unit: Unit; empty for dimensionless metrics.
        label: Name in tables and plots.
        column: Column in ``curves.json``; None: not included.
        logged: Whether it is logged to MLflow, with ``samples_seen`` as the step.
    """

    name: str
    unit: str = ""
    label: str = ""
    column: str | None = None
    logged: bool = False

    @property
    def title(self) -> str:
        """Label with unit, for the axis of a plot."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS = {
    metric.name: metric
    for metric in (
        Metric("samples_seen", "images", "samples seen", column="samples"),
        Metric("seconds", "s", "training time", column="seconds"),
        Metric("batch_size", "images", "batch size", column="batch_sizes", logged=True),
        Metric("accumulation", "batches", "accumulation", column="accumulations", logged=True),
        Metric("micro_batch", "images", "micro-batch"),
        Metric("workers", "", "workers", column="workers"),
        Metric("progress", "", "progress"),
        Metric("learning_rate", "", "learning rate", logged=True),
        Metric("train_loss", "nats", "training loss", column="train_loss", logged=True),
        Metric("train_loss_above_chance", "nats", "training loss above chance", logged=True),
        Metric("images_per_second", "images/s", "throughput", column="images_per_second", logged=True),
        Metric("data_wait", "", "fraction of time waiting for data", logged=True),
        Metric(METRIC, "nats", "reference loss", column=METRIC, logged=True),
        Metric("alignment", "", "alignment", column="alignment", logged=True),
        Metric("uniformity", "", "uniformity", column="uniformity", logged=True),
        Metric("rankme", "", "RankMe", column="rankme", logged=True),
        Metric("images_per_update", "images", "images per update", column="images_per_update", logged=True),
        Metric("batches_per_update", "", "micro-batches per update", column="batches_per_update", logged=True),
        Metric("information", "", "mean micro-batch score", column="information", logged=True),
        Metric("least_information", "", "lowest micro-batch score", column="least_information"),
        Metric("informed", "", "fraction of updates that reached alpha", logged=True),
        Metric("alpha", "", "alpha"),
        Metric("forecast", "nats", "forecast", logged=True),
        Metric("forecast_std", "nats", "standard deviation of the forecast"),
        Metric("deviation", "standard deviations", "forecast deviation", logged=True),
    )
}
#: Column in ``curves.json`` of each metric that has one.
CURVE_COLUMNS = {metric.name: metric.column for metric in METRICS.values() if metric.column is not None}
#: Metrics that are logged to MLflow.
LOGGED = tuple(metric.name for metric in METRICS.values() if metric.logged)
#: Entries of a report that are not numbers: weights of single images, and the checkpoint.
_ENTRIES = ("weighted", "checkpoint_path")
#: Keys of a report that are stored; Tune adds others.
REPORT_KEYS = (*METRICS, *_ENTRIES)
