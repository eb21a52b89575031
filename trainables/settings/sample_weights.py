"""Settings of sample weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from trainables.settings.base import Settings

Schedule = Literal["linear", "cosine", "step"]


class WeightSettings(Settings):
    """Settings of the weights of images in the loss."""

    mode: Literal["none", "static", "batch"] = Field(
        description="none: equal weights; static: by the distance to the cluster centre in pretrained features; batch: "
        "by the distance to the cluster centre in the current embeddings of the batch",
    )
    strength: float = Field(
        0.5, ge=0, le=1, description="the weight of a central image goes from 1 + strength to 1 - strength"
    )
    schedule: Schedule = Field("linear", description="schedule from central to peripheral images over the run")
    centres: Literal["kmeans", "strata"] = Field(
        "kmeans", description="clusters of mode batch: k-means of the batch's embeddings, or the data's clusters"
    )
    clusters: int = Field(8, ge=1, le=1024, description="number of k-means clusters in a batch")

    @model_validator(mode="after")
    def _used(self) -> Self:
        used = {"none": (), "static": ("strength", "schedule"), "batch": ("strength", "schedule", "centres")}[self.mode]
        if self.mode == "batch" and self.centres == "kmeans":
            used = (*used, "clusters")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name != "mode" and name not in used and value != field.default:
                raise ValueError(f"{name} = {value} has no effect with mode {self.mode}; remove it")
        return self


def unweighted() -> WeightSettings:
    """Returns settings with equal weights."""
    return WeightSettings(mode="none")
