"""Settings of an experiment that belong to no single component: amounts, the race, workers, swaps, tracking."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from schedulers import PREDICTORS
from schedulers.race import PRUNE_BELOW
from trainables.settings import DeviationSettings


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Amount(Settings):
    """A number of samples (images, not views), given as such or in epochs of the training images."""

    samples: int | None = Field(None, ge=1, description="images")
    epochs: float | None = Field(None, gt=0, description="passes over the training images")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.samples is None) == (self.epochs is None):
            raise ValueError("give either samples or epochs")
        return self

    def of(self, images: int) -> int:
        """The number of samples, with ``images`` in an epoch."""
        return self.samples if self.samples is not None else math.ceil((self.epochs or 0) * images)


def read_candidates(given: Any) -> Any:
    """What ``candidates`` holds, before its entries are read.

    Raises:
        ValueError: It is neither a list nor another accepted form.
    """
    numbers = _numbers(given)
    if len(numbers) == 1:
        raise ValueError(f"write a list: [{numbers[0]}]; or batch_size: {numbers[0]} where there is nothing to choose")
    if numbers:
        raise ValueError(f"write a list: [{', '.join(numbers)}]")
    entry = isinstance(given, Mapping) and ("batch_size" in given or not all(isinstance(key, str) for key in given))
    if entry or not isinstance(given, Mapping | list | tuple | BaseModel | None):
        raise ValueError(
            "write a list of batch sizes, such as [64, 128, 256] or [64, {batch_size: 64, accumulation: 4}]; or let "
            "them follow from the data: {from_clusters: {}}"
        )
    return given


def read_batch_size(given: Any) -> Any:
    """What ``batch_size`` holds, before it is read.

    Raises:
        ValueError: It is neither a whole number nor another accepted form.
    """
    if isinstance(given, Mapping | BaseModel | None) or len(_numbers(given)) == 1:
        return given
    several = given if isinstance(given, list) else _numbers(given)
    example = ", ".join(map(str, several)) if len(several) > 1 else "64, 128"
    raise ValueError(
        f"write one whole number, such as 256; for several to choose from, candidates: [{example}]; or let it follow "
        "from the data: {from_clusters: {}}"
    )


def _numbers(given: Any) -> list[str]:
    """The whole numbers in 64, "64" or "64, 128"; none in anything else."""
    if isinstance(given, bool) or not re.fullmatch(r"\d+(?:[\s,;]+\d+)*", text := str(given).strip("[] ")):
        return []
    return re.findall(r"\d+", text) if isinstance(given, int | str) else []


class Points(Settings):
    """Where the winner's training is interrupted for another race."""

    at: list[float] = Field(min_length=1, description="shares of the budget, rising")


def _at_least_one(number: str | int) -> str | int:
    if isinstance(number, int) and number < 1:
        raise ValueError("at least 1, or auto")
    return number


class RaceSettings(Settings):
    """How long candidates train side by side, and how one of them is chosen."""

    window: Amount = Field(default_factory=lambda: Amount(epochs=10), description="what each candidate may spend")
    evaluations: int = Field(12, ge=4, le=1000, description="reports of each candidate within the window")
    max_concurrent: Literal["auto"] | int = Field(
        "auto",
        description="candidates that train at once, the others when these have spent the window; auto: as many as "
        "free cores, GPUs and memory allow",
    )
    prune_below: float = Field(PRUNE_BELOW, ge=0, lt=1, description="one less probable than this to win is pruned")
    predictor: str = Field("joint", description="extrapolates the loss curves: joint, per_curve or last_value")

    rerace: Literal["never", "on_deviation"] | Points = Field(
        "never",
        description="another race from the winner's weights: when it does worse than forecast (see swap), or at: "
        "[0.1, 0.3]",
    )

    @field_validator("max_concurrent")
    @classmethod
    def _positive(cls, candidates: str | int) -> str | int:
        return _at_least_one(candidates)

    @field_validator("predictor")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PREDICTORS:
            raise ValueError(f"use one of {', '.join(PREDICTORS)}")
        return name


class TrialSettings(Settings):
    """The workers of one candidate during the race."""

    workers: int = Field(1, ge=1, description="Ray Train workers of each candidate; they share every batch")
    cpus_per_worker: float = Field(
        1, gt=0, description="CPU cores of a worker; less when a race needs more than there are"
    )
    use_gpu: Literal["auto"] | bool = Field("auto", description="one GPU a worker; auto: if the cluster has any")


class WinnerSettings(Settings):
    """The winner's way from the end of the race to the end of the budget."""

    workers: Literal["auto"] | int = Field("auto", description="Ray Train workers; auto: all that the cluster has")

    @field_validator("workers")
    @classmethod
    def _positive(cls, workers: str | int) -> str | int:
        return _at_least_one(workers)


class WinnerSwapSettings(DeviationSettings):
    """When a winner does worse than forecast, and whether it may then change to another candidate within its run."""

    enabled: bool = Field(False, description="whether to swap at all")


class TrackingSettings(Settings):
    """Where MLflow keeps the experiment."""

    enabled: bool = Field(True, description="whether to log to MLflow at all")
    uri: str | None = Field(None, description="tracking server; null: MLFLOW_TRACKING_URI, else mlflow.db in runs_dir")

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri and "@" in uri.partition("://")[2].partition("/")[0]:
            raise PydanticCustomError(
                "password", "a configuration holds no password; put the address into MLFLOW_TRACKING_URI instead"
            )
        return uri

    experiment: str = Field("adaptive_ray", min_length=1, description="name of the MLflow experiment")
