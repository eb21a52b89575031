"""Configuration of an experiment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from adaptive_ray.config.clusters import AlphaM, BatchFromClusters, CandidatesFromClusters, ClusterSettings
from adaptive_ray.config.dataset import DatasetSettings
from adaptive_ray.config.settings import (
    Amount,
    EvaluationSettings,
    RaceSettings,
    TrackingSettings,
    TrialSettings,
    WinnerSettings,
    WinnerSwapSettings,
    read_batch_size,
    read_candidates,
)
from adaptive_ray.errors import UserError
from schedulers import Candidate
from trainables.batches.scores import OF_FEATURES
from trainables.settings import (
    CandidateSettings,
    InformationSettings,
    Settings,
    SimCLRSettings,
    WeightSettings,
    check_accumulation,
    unweighted,
)


class ExperimentConfig(Settings):
    """Configuration of one run."""

    name: str | None = Field(None, description="name of the run; null: time and data set")
    runs_dir: Path = Field(
        Path("runs"), description="results are written to runs_dir/name; must be shared by all nodes"
    )
    seed: int = Field(0, ge=0, description="seed of data splits, initialization, order and augmentation")
    dataset: DatasetSettings = Field(description="data set")
    candidates: list[CandidateSettings] | CandidatesFromClusters | None = Field(
        None,
        description="batch sizes to choose from (global batch), optionally with accumulation; from_clusters: around "
        "alpha * M",
    )
    batch_size: int | BatchFromClusters | None = Field(
        None, description="a single batch size instead of candidates; from_clusters: alpha * M"
    )
    sampling: Literal["shuffle", "stratified", "balanced", "clustered"] = Field(
        "shuffle",
        description="how batches are drawn; shuffle: at random; stratified: in proportion to the clusters; balanced: "
        "equally from each cluster, with repetition; clustered: from few clusters (hard negatives)",
    )
    accumulation: InformationSettings | None = Field(
        None,
        description="adaptive accumulation: add micro-batches until they represent the data's distribution; null: a "
        "fixed number",
    )
    sample_weights: WeightSettings = Field(
        default_factory=unweighted, description="curriculum of sample weights: cluster centres first, edges later"
    )
    clusters: ClusterSettings = Field(default_factory=ClusterSettings, description="clusters of the training images")
    budget: Amount = Field(description="budget of the winner")
    explore: Literal["race", "rotate", "none"] = Field(
        "race",
        description="race: train candidates in parallel; rotate: alternate within one run; none: a single candidate",
    )
    race: RaceSettings = Field(default_factory=RaceSettings, description="race between the candidates")
    trial: TrialSettings = Field(default_factory=TrialSettings, description="workers during the race")
    winner: WinnerSettings = Field(default_factory=WinnerSettings, description="workers after the race")
    swap: WinnerSwapSettings = Field(
        default_factory=WinnerSwapSettings, description="swaps during the winner's training"
    )
    simclr: SimCLRSettings = Field(
        default_factory=SimCLRSettings, description="encoder, augmentation, loss and optimizer"
    )
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description="accuracy on held-out images, if there are labels"
    )
    tracking: TrackingSettings = Field(default_factory=TrackingSettings, description="MLflow tracking")

    _check_candidates = field_validator("candidates", mode="before")(read_candidates)
    _check_batch_size = field_validator("batch_size", mode="before")(read_batch_size)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
            raise ValueError("use letters, digits, dots, dashes and underscores")
        return name

    @field_validator("candidates")
    @classmethod
    def _check_distinct(cls, candidates: Any) -> Any:
        if not isinstance(candidates, list):
            return candidates
        if not candidates:
            raise ValueError("must contain at least one batch size")
        twice = next((c.key for c in candidates if candidates.count(c) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is listed twice; remove one")
        return candidates

    @field_validator("batch_size")
    @classmethod
    def _check_size(cls, batch_size: Any) -> Any:
        if isinstance(batch_size, int):
            Candidate(batch_size)
        return batch_size

    @model_validator(mode="after")
    def _check_exploration(self) -> Self:
        if (self.candidates is None) == (self.batch_size is None):
            raise ValueError("set either candidates, such as [128, 256], or batch_size")
        keys = self._keys()
        if self.explore == "none" and len(keys) > 1:
            raise ValueError(
                f"explore = 'none' needs a single candidate, not {', '.join(keys)}; remove the others or use race"
            )
        if self.explore == "rotate" and len(keys) < 2:
            raise ValueError(f"explore = 'rotate' needs more candidates than {keys[0]}; add one or use none")
        if self.swap.enabled and self.explore == "rotate":
            raise ValueError("swap.enabled cannot be used with explore = 'rotate'; remove one of them")
        if self.swap.enabled and len(keys) < 2:
            raise ValueError(f"swap.enabled needs more candidates than {keys[0]}; add one or disable it")
        if self.swap.enabled and self.race.rerace != "never":
            raise ValueError("swap.enabled cannot be used with race.rerace; remove one of them")
        if self.budget.minutes is not None and self.explore == "rotate":
            raise ValueError(
                "explore = 'rotate' needs a budget in samples or epochs: the learning rate of its single run decays "
                "until a number of samples that must be known in advance, and with a budget in minutes it would depend "
                "on which candidates get how many turns; set budget.epochs"
            )
        if self.race.window is not None and (self.race.window.minutes is None) != (self.budget.minutes is None):
            raise ValueError("budget and race.window must both be in minutes, or neither; change one of them")
        if self.race.rerace != "never" and (self.explore != "race" or len(keys) < 2):
            raise ValueError("race.rerace needs explore = 'race' and at least two candidates; remove it")
        return self

    @model_validator(mode="after")
    def _check_accumulation(self) -> Self:
        if self.accumulation is not None and not self.sized_by_clusters:
            try:
                check_accumulation(self.accumulation, self.choices)
            except ValueError as error:
                raise ValueError(f"accumulation: {error}") from None
        return self

    def _keys(self) -> list[str]:
        if isinstance(self.candidates, CandidatesFromClusters):
            return [f"{factor:g} alpha M" for factor in self.candidates.multipliers]
        return ["alpha M"] if isinstance(self.batch_size, BatchFromClusters) else [c.key for c in self.choices]

    @property
    def choices(self) -> list[Candidate]:
        """The candidates; with ``from_clusters``, only known after ``with_clusters``."""
        if isinstance(self.candidates, list):
            return self.candidates
        assert isinstance(self.batch_size, int), "call with_clusters first"
        return [Candidate(self.batch_size)]

    @property
    def sized_by_clusters(self) -> bool:
        """Whether batch sizes are computed from the number of clusters."""
        return isinstance(self.candidates, CandidatesFromClusters) or isinstance(self.batch_size, BatchFromClusters)

    @property
    def uses_clusters(self) -> bool:
        """Whether the run needs clusters of the training images."""
        return self.sized_by_clusters or bool(self.known_of_images)

    @property
    def known_of_images(self) -> tuple[str, ...]:
        """Fields of ``TrainingData`` that are computed from the clusters."""
        weights, score = self.sample_weights, self.accumulation.score if self.accumulation is not None else None
        needed = {
            "epoch_order": self.sampling != "shuffle",
            "strata": score == "histogram" or weights.centres == "strata",
            "features": score in OF_FEATURES,
            "centrality": weights.mode == "static",
        }
        return tuple(name for name, asked in needed.items() if asked)

    @property
    def alpha_m(self) -> AlphaM:
        """The rule that computes a batch size from the number of clusters."""
        for setting in (self.candidates, self.batch_size):
            if isinstance(setting, BatchFromClusters):
                return setting.from_clusters
        return AlphaM()

    def with_clusters(self, m: int) -> ExperimentConfig:
        """Returns a copy with the batch sizes computed for ``m`` clusters.

        Raises:
            UserError: The batch sizes are incompatible with ``accumulation``.
        """
        known = self
        if isinstance(self.candidates, CandidatesFromClusters):
            known = self.model_copy(update={"candidates": [Candidate(b) for b in self.candidates.batch_sizes(m)]})
        if isinstance(self.batch_size, BatchFromClusters):
            known = self.model_copy(update={"batch_size": self.batch_size.from_clusters.batch_size(m)})
        if known.accumulation is not None:
            try:
                check_accumulation(known.accumulation, known.choices)
            except ValueError as error:
                raise UserError(f"accumulation: with {m} clusters, {error}") from None
        return known
