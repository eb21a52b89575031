"""Settings of dataset clusters and of batch sizes computed from their number."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from trainables.settings import Settings


class ClusterSettings(Settings):
    """How images are embedded and clustered."""

    encoder: str = Field(
        "efficientnet_lite0",
        min_length=1,
        description="feature extractor: efficientnet_lite0, pixels, a torchvision classification network (NAME or "
        "NAME:WEIGHTS_FILE), or the directory of a run",
    )
    input_size: int | None = Field(
        None, ge=16, le=1024, description="input resolution of the encoder in pixels; null: its default"
    )
    method: Literal["auto", "graph", "silhouette", "bic", "hdbscan", "eigengap"] = Field(
        "auto",
        description="clustering method; auto: communities of the neighbour graph, unless k-means separates better",
    )
    n_clusters: PositiveInt | None = Field(None, description="number of clusters; null: estimated")
    cache_dir: Path | None = Field(
        None, description="directory of cached features, shared by all nodes; null: below runs_dir"
    )
    actors: Literal["auto"] | PositiveInt = Field(
        "auto", description="actors that embed the images; auto: one per GPU, or one per CPU core if there is no GPU"
    )

    @model_validator(mode="after")
    def _check_n_clusters(self) -> Self:
        if self.n_clusters is not None and self.method == "hdbscan":
            raise ValueError(
                f"n_clusters = {self.n_clusters}: hdbscan estimates the number; remove n_clusters or use another method"
            )
        return self


class AlphaM(Settings):
    """Batch size = alpha * M for M clusters."""

    alpha: PositiveFloat = Field(16, description="average images per cluster in a batch")
    multiple_of: PositiveInt = Field(8, description="the batch size is rounded to a multiple of this")
    min: int = Field(32, ge=2, description="smallest batch size")
    max: int = Field(4096, ge=2, description="largest batch size")

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is greater than max = {self.max}; swap them")
        return self

    def batch_size(self, m: int, multiplier: float = 1) -> int:
        """The batch size for ``m`` clusters, times ``multiplier``; ``min`` and ``max`` apply after rounding."""
        rounded = int(multiplier * self.alpha * m / self.multiple_of + 0.5) * self.multiple_of
        return max(self.min, min(self.max, rounded))


class BatchFromClusters(Settings):
    """A batch size computed from the number of clusters."""

    from_clusters: AlphaM = Field(description="rule alpha * M")


class CandidatesFromClusters(BatchFromClusters):
    """Candidates around the batch size computed from the number of clusters."""

    multipliers: list[PositiveFloat] = Field(
        [0.5, 1, 2], min_length=1, description="one candidate per factor of alpha * M"
    )

    def batch_sizes(self, m: int) -> list[int]:
        """The distinct batch sizes for ``m`` clusters."""
        return list(dict.fromkeys(self.from_clusters.batch_size(m, factor) for factor in self.multipliers))
