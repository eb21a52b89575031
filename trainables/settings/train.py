"""What a run is told: the settings that all candidates share, those of one candidate's run, and the images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schedulers import Candidate
from trainables.batches import EpochOrder, ImageFiles, InformationSettings, WeightSettings, unweighted
from trainables.simclr.augment import AugmentSettings
from trainables.simclr.encoder import EncoderSettings
from trainables.simclr.losses import check_name
from trainables.simclr.optim import OptimizerSettings
from trainables.training.swapping import SwapSettings


class SimCLRSettings(BaseModel):
    """What all candidates of an experiment have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    encoder: EncoderSettings = Field(default_factory=EncoderSettings, description="the network")
    augment: Literal["natural", "digits"] | AugmentSettings = Field("natural", description="profile or settings")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings, description="the update rule")
    loss: str = Field(
        "nt_xent", description="nt_xent, dcl, or your own as package.module:function, imported when training starts"
    )
    temperature: float = Field(0.5, gt=0, description="of the loss, and of the reference loss")
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=2)] = Field(
        "auto",
        description="images of a worker in the network at once; a larger share of a batch is cut up, and its gradient "
        "stays exact (gradient cache); auto: the largest that fits into memory",
    )
    average: float = Field(0.02, gt=0, le=1, description="horizon of the weights' moving average: share of the budget")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the network's forward and backward; auto is bfloat16 where the hardware computes in it"
    )
    accelerate: Literal["auto", "graphs", "none"] = Field(
        "auto",
        description="of a GPU that trains alone; graphs: steps are replayed as CUDA graphs; auto: and the network is "
        "compiled, if the run has more than five minutes to go",
    )

    @field_validator("loss")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_name(name)


class TrainSettings(SimCLRSettings):
    """One candidate's run."""

    batch_size: int = Field(ge=2, description="images, over all workers, that are each other's negatives")
    accumulation: int = Field(1, ge=1, description="batches per optimizer step, whose gradients are averaged")
    budget: int = Field(ge=1, description="the whole run, in samples; schedules end there")
    evaluate_every: int = Field(ge=1, description="samples between two reports")
    seed: int = Field(0, ge=0, description="of initialisation, order and augmentation")
    swap: SwapSettings | None = Field(None, description="changes batch_size and accumulation on the way; null: never")
    information: InformationSettings | None = Field(
        None, description="how many batches make an update, where their information decides it; null: accumulation"
    )
    sample_weights: WeightSettings = Field(
        default_factory=unweighted, description="how much an image counts in the loss"
    )

    @model_validator(mode="after")
    def _among_its_own(self) -> Self:
        if self.swap is not None and self.candidate not in self.swap.candidates:
            known = ", ".join(candidate.key for candidate in self.swap.candidates)
            raise ValueError(f"a run that starts with {self.candidate.key} must have it in swap.candidates ({known})")
        return self

    @model_validator(mode="after")
    def _one_way_to_accumulate(self) -> Self:
        if self.information is not None:
            check_accumulation(self.information, self.candidates)
        return self

    @property
    def candidate(self) -> Candidate:
        """What the run starts with."""
        return Candidate(self.batch_size, self.accumulation)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Everything that the run may train with."""
        return self.swap.candidates if self.swap is not None else (self.candidate,)


def check_accumulation(information: InformationSettings, candidates: Iterable[Candidate]) -> None:
    """Whether candidates can leave it to their batches' information when they make an update.

    Raises:
        ValueError: One of them fixes a number itself, or ``alpha: auto`` cannot have its images.
    """
    for candidate in candidates:
        if candidate.accumulation > 1:
            raise ValueError(
                f"{candidate.key} fixes {candidate.accumulation} batches for an update, which accumulation until "
                f"information decides; leave one out"
            )
        information.check(candidate.batch_size)


@dataclass(frozen=True)
class TrainingData:
    """Images to train on (in memory or on disk), and held-out ones for the reference loss: uint8 [n, C, H, W], square.

    Args:
        images: To train on.
        reference: Held out.
        epoch_order: Each epoch's order, such as ``partial(stratified_order, strata, seed)``; None: shuffled.
        strata: Each image's cluster, whole numbers [n]; for the score ``histogram`` and for weights by ``strata``.
        features: What a pretrained network sees in each image, float [n, d], d small; for other scores.
        centrality: Percentile of each image's distance to its cluster's centre [n]; for static weights.

    Raises:
        ValueError: What is known of the images is not of so many images, or no such numbers.
    """

    images: NDArray[np.uint8] | ImageFiles
    reference: NDArray[np.uint8]
    epoch_order: EpochOrder | None = None
    strata: NDArray[np.int64] | None = None
    features: NDArray[np.float32] | None = None
    centrality: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name in ("strata", "features", "centrality"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.images):
                raise ValueError(f"{name} of {len(values):,} images do not fit {len(self.images):,}: of other images?")
        if self.features is not None and not np.isfinite(self.features).all():
            raise ValueError("features must be finite, and some are NaN or infinite; fix or leave out these images")
        q = self.centrality
        if q is not None and len(q) and not (np.min(q) >= 0 and np.max(q) <= 1):
            raise ValueError(f"centrality from {np.min(q):g} to {np.max(q):g} must be percentiles within 0 to 1")
