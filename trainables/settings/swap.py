"""Settings of policies that change the batch size within a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schedulers.forecast.deviation import PATIENCE, THRESHOLD
from trainables.settings.candidate import CandidateSettings


class DeviationSettings(BaseModel):
    """When a run counts as worse than forecast."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    patience: int = Field(PATIENCE, ge=2, description="reports in a row that must lie above their forecasts")
    threshold: float = Field(THRESHOLD, ge=0, description="how far above, in the forecast's standard deviations")


class SwapSettings(DeviationSettings):
    """How a run changes its candidate by itself."""

    mode: Literal["deviation", "rotate"] = Field(
        "deviation",
        description="deviation: keep a candidate until it does worse than forecast; rotate: take turns, the most "
        "promising next",
    )
    candidates: tuple[CandidateSettings, ...] = Field(
        min_length=2, description="what can be changed to, the first one included"
    )
    axis: Literal["samples", "seconds"] = Field("samples", description="what is scarce: images or time")
    rates: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="key of a candidate: mean and standard deviation of the logarithm of its progress per sample",
    )
    throughputs: dict[str, float] = Field(default_factory=dict, description="key of a candidate: images per second")
    exploration: float = Field(1.0, ge=0, description="rotate's bonus for the unknown, in standard deviations")
    turn: int | None = Field(None, ge=1, description="samples of a turn of rotate; null: one epoch")
