"""Settings of sample weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Schedule = Literal["linear", "cosine", "step"]


class WeightSettings(BaseModel):
    """How much an image counts in the loss."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mode: Literal["none", "static", "batch"] = Field(
        description="none: all alike; static: by where pretrained features place an image in its cluster; batch: by "
        "where the network's present embeddings place it among those of its batch",
    )
    strength: float = Field(
        0.5, ge=0, le=1, description="a central image starts at 1 + strength and ends at 1 - strength; 1 at most"
    )
    schedule: Schedule = Field("linear", description="how weights go from centre to edge over the run")
    centres: Literal["kmeans", "strata"] = Field(
        "kmeans", description="of mode batch: from the batch's embeddings alone, or the means of the data's clusters"
    )
    clusters: int = Field(8, ge=1, le=1024, description="of mode batch with centres kmeans, in each batch")

    @model_validator(mode="after")
    def _used(self) -> Self:
        used = {"none": (), "static": ("strength", "schedule"), "batch": ("strength", "schedule", "centres")}[self.mode]
        if self.mode == "batch" and self.centres == "kmeans":
            used = (*used, "clusters")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name != "mode" and name not in used and value != field.default:
                raise ValueError(f"{name} = {value} changes nothing with mode {self.mode}; leave it out")
        return self


def unweighted() -> WeightSettings:
    """All images count alike."""
    return WeightSettings(mode="none")
