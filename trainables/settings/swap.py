"""Settings of policies that change the batch size during a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schedulers.forecast.deviation import PATIENCE, THRESHOLD
from trainables.settings.base import Settings
from trainables.settings.candidate import CandidateSettings


class DeviationSettings(Settings):
    """Settings of the forecast deviation at which a candidate underperforms."""

    patience: int = Field(PATIENCE, ge=2, description="consecutive reports that must be above their forecasts")
    threshold: float = Field(THRESHOLD, ge=0, description="smallest deviation in standard deviations of the forecast")


class SwapSettings(DeviationSettings):
    """Settings of a policy that changes the candidate during a run."""

    mode: Literal["deviation", "rotate"] = Field(
        "deviation",
        description="deviation: keep a candidate until it underperforms its forecast; rotate: train with the "
        "candidates in turns, the most promising next",
    )
    candidates: tuple[CandidateSettings, ...] = Field(
        min_length=2, description="candidates of the policy, including the first one"
    )
    axis: Literal["samples", "seconds"] = Field("samples", description="resource in which progress is measured")
    rates: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="log statistical efficiency per candidate key: mean and standard deviation",
    )
    throughputs: dict[str, float] = Field(default_factory=dict, description="images per second per candidate key")
    turn: int | None = Field(None, ge=1, description="samples per turn of rotate; null: one epoch")
