"""Settings of the optimizer and of the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from trainables.settings.base import Settings


class OptimizerSettings(Settings):
    """Settings of the optimizer, the learning-rate schedule and the learning-rate scaling."""

    name: Literal["sgd", "lars", "adamw"] = Field("sgd", description="optimizer")
    learning_rate: float = Field(0.5, gt=0, description="peak learning rate for a batch of base_batch_size images")
    base_batch_size: int = Field(256, ge=1, description="batch size that learning_rate refers to")
    lr_scaling: Literal["sqrt", "linear", "none"] = Field("sqrt", description="learning-rate scaling by batch size")
    warmup: float = Field(0.05, ge=0, lt=1, description="fraction of the budget for linear warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd and lars, first beta of adamw")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay; not applied to biases and norms")

    def learning_rate_at(self, progress: float, batch_size: int) -> float:
        """Returns the learning rate after ``progress`` (0 to 1) of the budget for a global batch of ``batch_size``.

        Linear warm-up is followed by cosine decay to 0 (Loshchilov & Hutter 2017). The batch size multiplies it by
        (B / base_batch_size)^p, where p is 1/2, 1 or 0: ``lr_scaling`` is ``sqrt`` (Krizhevsky 2014), ``linear``
        (Goyal et al. 2017) or ``none``.
        """
        power: float = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}[self.lr_scaling]
        peak: float = self.learning_rate * (batch_size / self.base_batch_size) ** power
        if progress < self.warmup:
            return peak * progress / self.warmup
        done = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        return peak * 0.5 * (1 + math.cos(math.pi * done))
