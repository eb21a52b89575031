"""Settings of the optimizer, and the learning rate that follows from them."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OptimizerSettings(BaseModel):
    """How weights are updated, and how the learning rate follows the batch size and the progress."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["sgd", "lars", "adamw"] = Field("sgd", description="the update rule")
    learning_rate: float = Field(0.5, gt=0, description="the peak, at a batch of base_batch_size images")
    base_batch_size: int = Field(256, ge=1, description="images in the batch that learning_rate is meant for")
    lr_scaling: Literal["sqrt", "linear", "none"] = Field("sqrt", description="how the rate grows with the batch size")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the budget in which the rate rises from 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and lars; adamw's first beta")
    weight_decay: float = Field(1e-4, ge=0, description="on weights; never on biases and norms")

    def learning_rate_at(self, progress: float, batch_size: int) -> float:
        """The learning rate after ``progress`` (0 to 1) of the budget, for a global batch of ``batch_size``.

        Linear warm-up, then half a cosine to 0 (Loshchilov & Hutter 2017). The batch size multiplies it by
        (B / base_batch_size)^p, where p is 1/2, 1 or 0: ``lr_scaling`` is ``sqrt`` (Krizhevsky 2014), ``linear``
        (Goyal et al. 2017) or ``none``.
        """
        power: float = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}[self.lr_scaling]
        peak: float = self.learning_rate * (batch_size / self.base_batch_size) ** power
        if progress < self.warmup:
            return peak * progress / self.warmup
        done = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        return peak * 0.5 * (1 + math.cos(math.pi * done))
