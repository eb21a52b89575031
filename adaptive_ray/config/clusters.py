"""Settings of clusters, and of the batch size that follows from their number."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClusterSettings(_Settings):
    """What describes the images, and how their clusters are counted."""

    encoder: str = Field(
        "efficientnet_lite0",
        min_length=1,
        description="efficientnet_lite0, pixels, a classification network of torchvision (NAME, or NAME:WEIGHTS_FILE), "
        "or the directory of a run whose encoder is used",
    )
    input_size: int | None = Field(
        None, ge=16, le=1024, description="side in pixels of what the encoder sees; null: its own"
    )
    method: Literal["auto", "graph", "silhouette", "bic", "hdbscan", "eigengap"] = Field(
        "auto", description="how they are counted; auto: the graph's communities, unless k-means separates better"
    )
    n_clusters: PositiveInt | None = Field(None, description="a fixed number of clusters; null: counted")
    cache_dir: Path | None = Field(None, description="where features are kept, reached by all nodes; null: in runs_dir")
    actors: Literal["auto"] | PositiveInt = Field(
        "auto", description="processes that embed the images; auto: one for each GPU, without any for each CPU core"
    )

    @model_validator(mode="after")
    def _can_be_fixed(self) -> Self:
        if self.n_clusters is not None and self.method == "hdbscan":
            raise ValueError(
                f"n_clusters = {self.n_clusters}: hdbscan finds the number itself; remove it or use another method"
            )
        return self


class AlphaM(_Settings):
    """Batch size = alpha * M, where the data has M clusters: that many images of each, on average."""

    alpha: PositiveFloat = Field(16, description="images of each cluster in a batch")
    multiple_of: PositiveInt = Field(8, description="to which the batch size is rounded")
    min: int = Field(32, ge=2, description="smallest batch size")
    max: int = Field(4096, ge=2, description="largest batch size")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}; swap them")
        return self

    def batch_size(self, m: int, times: float = 1) -> int:
        """For ``m`` clusters, ``times`` as large; limits go before multiples."""
        rounded = int(times * self.alpha * m / self.multiple_of + 0.5) * self.multiple_of
        return max(self.min, min(self.max, rounded))


class BatchFromClusters(_Settings):
    """A batch size that follows from the number of clusters."""

    from_clusters: AlphaM = Field(description="settings of alpha * M")


class CandidatesFromClusters(BatchFromClusters):
    """Candidates about the batch size that follows from the number of clusters."""

    multipliers: list[PositiveFloat] = Field([0.5, 1, 2], min_length=1, description="candidates, in units of alpha * M")

    def batch_sizes(self, m: int) -> list[int]:
        """For ``m`` clusters; limits may make some equal, which then count once."""
        return list(dict.fromkeys(self.from_clusters.batch_size(m, times) for times in self.multipliers))
