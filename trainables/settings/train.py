"""Settings of a training run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from schedulers import Candidate
from trainables.settings.accumulation import InformationSettings, check_accumulation
from trainables.settings.augment import AugmentSettings
from trainables.settings.base import Settings
from trainables.settings.encoder import EncoderSettings
from trainables.settings.loss import check_name
from trainables.settings.optimizer import OptimizerSettings
from trainables.settings.sample_weights import WeightSettings, unweighted
from trainables.settings.swap import SwapSettings


class SimCLRSettings(Settings):
    """Settings that all candidates of an experiment have in common."""

    encoder: EncoderSettings = Field(default_factory=EncoderSettings, description="the network")
    augment: Literal["natural", "digits"] | AugmentSettings = Field("natural", description="profile or settings")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings, description="the optimizer")
    loss: Annotated[str, AfterValidator(check_name)] = Field(
        "nt_xent", description="nt_xent, dcl, or a custom loss package.module:function, imported when training starts"
    )
    temperature: float = Field(0.5, gt=0, description="temperature of the loss and of the reference loss")
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=2)] = Field(
        "auto",
        description="images of one worker in the network at once; a larger shard is split, with the same gradient "
        "(GradCache); auto: the largest that fits into memory",
    )
    ema_horizon: float = Field(
        0.02, gt=0, le=1, description="horizon of the EMA of the weights, as a fraction of the budget"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of forward and backward; auto: bfloat16 if the device is fast "
        "in it (GPUs of compute capability 8.0 and above; CPUs with AVX512-BF16 or AMX)",
    )
    accelerate: Literal["auto", "graphs", "none"] = Field(
        "auto",
        description="acceleration on GPUs; graphs: a single worker's steps are replayed as CUDA graphs; auto: the "
        "network is compiled as well, with any number of workers, if more than five minutes remain",
    )


class TrainSettings(SimCLRSettings):
    """Settings of one candidate's run."""

    batch_size: int = Field(ge=2, description="images of a global batch, which are each other's negatives")
    accumulation: int = Field(1, ge=1, description="batches per optimizer step, whose gradients are averaged")
    budget: int = Field(ge=1, description="length of the run in samples; schedules end there")
    evaluate_every: int = Field(ge=1, description="samples between two reports")
    knn_every: int | None = Field(
        None, ge=1, description="samples between two reports with the online kNN accuracy; null: none has it"
    )
    seed: int = Field(0, ge=0, description="seed of initialisation, order and augmentation")
    swap: SwapSettings | None = Field(
        None, description="policy that changes batch_size and accumulation during the run; null: none"
    )
    information: InformationSettings | None = Field(
        None, description="adaptive accumulation; null: a fixed number of batches per update"
    )
    sample_weights: WeightSettings = Field(default_factory=unweighted, description="weights of images in the loss")

    @model_validator(mode="after")
    def _includes_first_candidate(self) -> Self:
        if self.swap is not None and self.candidate not in self.swap.candidates:
            known = ", ".join(candidate.key for candidate in self.swap.candidates)
            raise ValueError(f"swap.candidates ({known}) must include {self.candidate.key}, which the run starts with")
        return self

    @model_validator(mode="after")
    def _accumulates_one_way(self) -> Self:
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
        """The candidate that the run starts with."""
        return Candidate(self.batch_size, self.accumulation)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates that the run may train with."""
        return self.swap.candidates if self.swap is not None else (self.candidate,)
