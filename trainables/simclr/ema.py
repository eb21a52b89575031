"""Exponential moving average (EMA) of the weights, in units of samples."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from trainables.simclr.encoder import Encoder, SimCLR


class WeightEMA:
    """Averages a model's parameters over about the last ``horizon`` samples.

    The decay of a step of B images is exp(-B / horizon), so that the horizon does not depend on the batch size. At
    first the EMA is the mean of all weights so far.

    The EMA has a similar effect as decaying the learning rate (Sandler et al. 2023) and makes runs comparable while
    their learning rate is still high. Batch statistics are not averaged; ``calibrate`` recomputes them.
    """

    def __init__(self, model: SimCLR, horizon: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._horizon = horizon
        self._weights: list[Tensor] = list(model.parameters())
        self._averages: list[Tensor] = list(self.model.parameters())

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder

    @torch.no_grad()
    def update(self, batch_size: int, samples_seen: int) -> None:
        """Adds the weights after a step of ``batch_size`` images; ``samples_seen`` includes them."""
        keep = min(math.exp(-batch_size / self._horizon), 1 - batch_size / samples_seen)
        torch._foreach_lerp_(self._averages, self._weights, 1 - keep)
