"""Settings of the race, workers, swaps and tracking."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from schedulers import FORECASTERS
from schedulers.race import PRUNE_BELOW, Rule
from trainables.settings import DeviationSettings, Settings


class Amount(Settings):
    """A number of samples (images, not views), of epochs, or of minutes of training."""

    samples: int | None = Field(None, ge=1, description="number of images")
    epochs: float | None = Field(None, gt=0, description="passes over the training images")
    minutes: float | None = Field(
        None, gt=0, description="minutes of training; each candidate's samples follow from its measured throughput"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(value is not None for value in (self.samples, self.epochs, self.minutes)) != 1:
            raise ValueError("give either samples, epochs or minutes")
        return self

    def of(self, images: int) -> int:
        """The number of samples, for epochs of ``images`` images; one epoch for a number of minutes."""
        if self.minutes is not None:
            return images
        return self.samples if self.samples is not None else math.ceil((self.epochs or 0) * images)


def read_candidates(given: Any) -> Any:
    """Checks the form of ``candidates`` before its entries are parsed.

    Raises:
        ValueError: It is neither a list nor another accepted form.
    """
    numbers = _numbers(given)
    if len(numbers) == 1:
        raise ValueError(f"write a list: [{numbers[0]}]; or use batch_size: {numbers[0]} for a single run")
    if numbers:
        raise ValueError(f"write a list: [{', '.join(numbers)}]")
    entry = isinstance(given, Mapping) and ("batch_size" in given or not all(isinstance(key, str) for key in given))
    if entry or not isinstance(given, Mapping | list | tuple | BaseModel | None):
        raise ValueError(
            "write a list of batch sizes, such as [64, 128, 256] or [64, {batch_size: 64, accumulation: 4}]; or "
            "compute them from the data: {from_clusters: {}}"
        )
    return given


def read_batch_size(given: Any) -> Any:
    """Checks the form of ``batch_size`` before it is parsed.

    Raises:
        ValueError: It is neither a whole number nor another accepted form.
    """
    if isinstance(given, Mapping | BaseModel | None) or len(_numbers(given)) == 1:
        return given
    several = given if isinstance(given, list) else _numbers(given)
    example = ", ".join(map(str, several)) if len(several) > 1 else "64, 128"
    raise ValueError(
        f"write one integer, such as 256; to choose among several, use candidates: [{example}]; or compute it from "
        "the data: {from_clusters: {}}"
    )


def _numbers(given: Any) -> list[str]:
    """The integers in 64, "64" or "64, 128"; empty for other input."""
    if isinstance(given, bool) or not re.fullmatch(r"\d+(?:[\s,;]+\d+)*", text := str(given).strip("[] ")):
        return []
    return re.findall(r"\d+", text) if isinstance(given, int | str) else []


class Points(Settings):
    """When to race again during the winner's training."""

    at: list[float] = Field(min_length=1, description="fractions of the budget, increasing")


def _at_least_one(number: str | int) -> str | int:
    if isinstance(number, int) and number < 1:
        raise ValueError("must be at least 1, or auto")
    return number


AutoOrCount = Annotated[Literal["auto"] | int, AfterValidator(_at_least_one)]


class RaceSettings(Settings):
    """Settings of the race between candidates."""

    window: Amount | None = Field(
        None, description="budget of each candidate in the race; null: 10 epochs, or a tenth of a budget in minutes"
    )
    evaluations: int = Field(12, ge=4, le=1000, description="number of reports per candidate in the window")
    max_concurrent: AutoOrCount = Field(
        "auto",
        description="maximum number of candidates that train concurrently; auto: as many as fit into the free cores, "
        "GPUs and memory",
    )
    rule: Rule = Field(
        "halving",
        description="halving: the candidates with the lower losses after equal parts of the budget continue; forecast: "
        "those with the lower forecasts of the final loss",
    )
    prune_below: float = Field(
        PRUNE_BELOW,
        ge=0,
        lt=1,
        description="with rule: forecast, prune a candidate whose probability of finishing best is below this; 0: with "
        "either rule, prune none before the window is spent",
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="candidates are equal if their losses differ by at most this fraction of the decrease in loss, and "
        "the fastest of them wins; null: 0.05 (of the decrease so far), with forecasts 0.01 (of that until the "
        "end). Not used with a budget in minutes",
    )
    forecaster: str = Field("joint", description="forecaster of the loss curves: joint, per_curve or last_value")

    rerace: Literal["never", "on_deviation"] | Points = Field(
        "never",
        description="when to race again from the winner's weights; on_deviation: when it underperforms its forecast "
        "(see swap); or at: [0.1, 0.3]",
    )

    @field_validator("forecaster")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in FORECASTERS:
            raise ValueError(f"use one of {', '.join(FORECASTERS)}")
        return name


class TrialSettings(Settings):
    """Workers of one candidate in the race."""

    workers: int = Field(1, ge=1, description="Ray Train workers per candidate; each batch is sharded over them")
    cpus_per_worker: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto",
        description="CPU cores per worker; auto: one beside a GPU, otherwise all of its node; fewer if the candidates "
        "need more than are available",
    )
    use_gpu: Literal["auto"] | bool = Field(
        "auto", description="whether each worker uses a GPU; auto: if the cluster has any"
    )


class WinnerSettings(Settings):
    """Workers of the winner after the race."""

    workers: AutoOrCount = Field(
        "auto",
        description="Ray Train workers; auto: one per GPU of the cluster if that saves several times what a restart "
        "costs, otherwise those of the race",
    )


class WinnerSwapSettings(DeviationSettings):
    """When a run underperforms its forecast, and whether it then swaps to another candidate."""

    enabled: bool = Field(False, description="whether the winner may swap to another candidate")


class EvaluationSettings(Settings):
    """Accuracy of classifiers on frozen features."""

    images: int = Field(50_000, ge=16, description="maximum number of training images of the final evaluation")
    every: Literal["auto"] | Amount | None = Field(
        "auto",
        description="how often the kNN accuracy of the EMA weights is reported during training, at the first report "
        "after each interval, such as {epochs: 1}; auto: up to 20 times, if that takes at most about 2 % of the "
        "training time; null: never",
    )

    @field_validator("every")
    @classmethod
    def _of_samples(cls, every: Any) -> Any:
        if isinstance(every, Amount) and every.minutes is not None:
            raise ValueError("give samples or epochs")
        return every


class TrackingSettings(Settings):
    """MLflow tracking."""

    enabled: bool = Field(True, description="whether to log to MLflow")
    uri: str | None = Field(None, description="tracking URI; null: MLFLOW_TRACKING_URI, or mlflow.db in runs_dir")

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri and "@" in uri.partition("://")[2].partition("/")[0]:
            raise PydanticCustomError("password", "must not contain a password; set MLFLOW_TRACKING_URI instead")
        return uri

    experiment: str = Field("adaptive_ray", min_length=1, description="MLflow experiment name")
