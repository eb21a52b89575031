"""An experiment's configuration: composes the components' settings, and reads YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from adaptive_ray.config.clusters import AlphaM, BatchFromClusters, CandidatesFromClusters, ClusterSettings
from adaptive_ray.config.dataset import DatasetSettings
from adaptive_ray.config.errors import format_error
from adaptive_ray.config.settings import (
    Amount,
    RaceSettings,
    Settings,
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
    SimCLRSettings,
    WeightSettings,
    check_accumulation,
    unweighted,
)


class ExperimentConfig(Settings):
    """Everything about one run."""

    name: str | None = Field(None, description="of the run; null: time and data set")
    runs_dir: Path = Field(Path("runs"), description="results are written to runs_dir/name; all nodes must reach it")
    seed: int = Field(0, ge=0, description="fixes data splits, initialisation, order and augmentation")
    dataset: DatasetSettings = Field(description="images")
    candidates: list[CandidateSettings] | CandidatesFromClusters | None = Field(
        None,
        description="what to choose from: batch sizes (images over all workers), or batch_size with accumulation; "
        "from_clusters: about alpha * M",
    )
    batch_size: int | BatchFromClusters | None = Field(
        None, description="instead of candidates: the only one; from_clusters: alpha * M"
    )
    sampling: Literal["shuffle", "stratified", "balanced", "clustered"] = Field(
        "shuffle",
        description="shuffle: any images; stratified: every cluster in proportion; balanced: equally much of every "
        "cluster, small ones repeated; clustered: few clusters, so that negatives are hard",
    )
    accumulation: InformationSettings | None = Field(
        None,
        description="micro-batches are accumulated until they hold enough of the data's distribution; null: as many as "
        "a candidate says",
    )
    sample_weights: WeightSettings = Field(
        default_factory=unweighted, description="central images count more early in a run, those at the edge late"
    )
    clusters: ClusterSettings = Field(default_factory=ClusterSettings, description="of the training images")
    budget: Amount = Field(description="the winner's whole run")
    explore: Literal["race", "rotate", "none"] = Field(
        "race", description="race: candidates side by side; rotate: in turns within one run; none: there is one only"
    )
    race: RaceSettings = Field(default_factory=RaceSettings, description="the choice between the candidates")
    trial: TrialSettings = Field(default_factory=TrialSettings, description="workers during the race")
    winner: WinnerSettings = Field(default_factory=WinnerSettings, description="workers after the race")
    swap: WinnerSwapSettings = Field(default_factory=WinnerSwapSettings, description="the winner's change of candidate")
    simclr: SimCLRSettings = Field(default_factory=SimCLRSettings, description="network, augmentation, optimizer")
    probe_images: int = Field(10_000, ge=16, description="training images that the final probes learn from, at most")
    tracking: TrackingSettings = Field(default_factory=TrackingSettings, description="MLflow")

    _candidates_are_listed = field_validator("candidates", mode="before")(read_candidates)
    _batch_size_is_one = field_validator("batch_size", mode="before")(read_batch_size)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
            raise ValueError("use letters, digits, dots, dashes and underscores")
        return name

    @field_validator("candidates")
    @classmethod
    def _distinct(cls, candidates: Any) -> Any:
        if not isinstance(candidates, list):
            return candidates
        if not candidates:
            raise ValueError("name at least one batch size")
        twice = next((c.key for c in candidates if candidates.count(c) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} appears twice; remove one")
        return candidates

    @field_validator("batch_size")
    @classmethod
    def _a_candidate(cls, batch_size: Any) -> Any:
        if isinstance(batch_size, int):
            Candidate(batch_size)
        return batch_size

    @model_validator(mode="after")
    def _enough_candidates(self) -> Self:
        if (self.candidates is None) == (self.batch_size is None):
            raise ValueError("give either candidates to choose from, such as [128, 256], or one batch_size")
        keys = self._keys()
        if self.explore == "none" and len(keys) > 1:
            raise ValueError(f"explore = 'none' trains one candidate, not {', '.join(keys)}; keep one, or use race")
        if self.explore == "rotate" and len(keys) < 2:
            raise ValueError(f"explore = 'rotate' needs candidates beside {keys[0]}; add one, or use none")
        if self.swap.enabled and self.explore == "rotate":
            raise ValueError("swap.enabled is for the winner of a race, and explore = 'rotate' has none; leave one out")
        if self.swap.enabled and len(keys) < 2:
            raise ValueError(f"swap.enabled needs candidates beside {keys[0]}; add one, or leave it out")
        if self.swap.enabled and self.race.rerace != "never":
            raise ValueError("swap.enabled and race.rerace cannot both be set; choose one")
        if self.race.rerace != "never" and (self.explore != "race" or len(keys) < 2):
            raise ValueError("race.rerace needs explore = 'race' and at least two candidates; leave it out")
        return self

    @model_validator(mode="after")
    def _one_way_to_accumulate(self) -> Self:
        if self.accumulation is not None and not self.sized_by_clusters:
            try:
                check_accumulation(self.accumulation, self.choices)
            except ValueError as error:
                raise ValueError(f"accumulation: {error}") from None
        return self

    def _keys(self) -> list[str]:
        if isinstance(self.candidates, CandidatesFromClusters):
            return [f"{times:g} alpha M" for times in self.candidates.multipliers]
        return ["alpha M"] if isinstance(self.batch_size, BatchFromClusters) else [c.key for c in self.choices]

    @property
    def choices(self) -> list[Candidate]:
        """The candidates, where they are known: not before clusters are counted that they follow from."""
        if isinstance(self.candidates, list):
            return self.candidates
        assert isinstance(self.batch_size, int), "candidates that follow from clusters are known after with_clusters"
        return [Candidate(self.batch_size)]

    @property
    def sized_by_clusters(self) -> bool:
        """Whether batch sizes follow from the number of clusters."""
        return isinstance(self.candidates, CandidatesFromClusters) or isinstance(self.batch_size, BatchFromClusters)

    @property
    def uses_clusters(self) -> bool:
        """Whether the training images must be clustered."""
        return self.sized_by_clusters or bool(self.known_of_images)

    @property
    def known_of_images(self) -> tuple[str, ...]:
        """What workers must be told of the images' clusters: fields of ``TrainingData``."""
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
        """How batch sizes follow, or would, from the number of clusters."""
        for setting in (self.candidates, self.batch_size):
            if isinstance(setting, BatchFromClusters):
                return setting.from_clusters
        return AlphaM()

    def with_clusters(self, m: int) -> ExperimentConfig:
        """The same with the batch sizes that follow from ``m`` clusters.

        Raises:
            UserError: Accumulation cannot have its images with them.
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


def load_config(
    path: Path, overrides: Iterable[str] = (), *, name: str | None = None, runs_dir: Path | None = None
) -> ExperimentConfig:
    """Reads a YAML file, applies ``a.b=value`` overrides (values are YAML too), and validates.

    ``name`` and ``runs_dir`` replace the settings of these names as they are.

    Raises:
        UserError: The file is missing or no YAML mapping, an override is malformed, or a setting is wrong.
    """
    raw = _read_yaml(path)
    for override in overrides:
        _override(raw, override)
    raw |= {key: str(value) for key, value in (("name", name), ("runs_dir", runs_dir)) if value is not None}
    return parse_config(raw, source=str(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold a mapping of settings, not {type(raw).__name__}")
    return raw


def parse_config(raw: Mapping[str, Any], source: str = "configuration") -> ExperimentConfig:
    """Validates a mapping; see ``load_config``."""
    try:
        return ExperimentConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {format_error(error, ExperimentConfig)}") from None


def dump_config(config: ExperimentConfig) -> str:
    """The configuration as YAML, every setting written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(raw: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UserError(f"--set {override!r}: write it as name.of.setting=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {override!r}: {text!r} is not valid YAML") from None
    *parents, last = name.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent!r} holds {child!r}, no settings below it")
        node = child
    if isinstance(value, dict) and isinstance(node.get(last), dict):
        raise UserError(f"--set {override!r}: set the entries of {name} one by one")
    # samples and epochs exclude each other: giving one replaces the other
    for rival in {"samples": ["epochs"], "epochs": ["samples"]}.get(last, []):
        node.pop(rival, None)
    node[last] = value
