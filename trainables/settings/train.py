"""Settings of a training run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schedulers import Candidate
from trainables.settings.accumulation import InformationSettings, check_accumulation
from trainables.settings.augment import AugmentSettings
from trainables.settings.encoder import EncoderSettings
from trainables.settings.loss import check_name
from trainables.settings.optimizer import OptimizerSettings
from trainables.settings.sample_weights import WeightSettings, unweighted
from trainables.settings.swap import SwapSettings


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
    ema_horizon: float = Field(
        0.02, gt=0, le=1, description="horizon of the weights' moving average: share of the budget"
    )
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

    def with_swap(self, swap: SwapSettings | None) -> Self:
        """Returns these settings with another policy within the run.

        Raises:
            ValidationError: The policy does not know the run's own candidate.
        """
        return type(self)(**{**dict(self), "swap": swap})

    @property
    def candidate(self) -> Candidate:
        """What the run starts with."""
        return Candidate(self.batch_size, self.accumulation)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Everything that the run may train with."""
        return self.swap.candidates if self.swap is not None else (self.candidate,)
