"""An exponential moving average of the weights, in units of samples."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from trainables.simclr.encoder import Encoder, SimCLR


class WeightEMA:
    """Averages a model's parameters over about the last ``horizon`` samples.

    The decay of a step is exp(-B / horizon): it depends on the samples of the step and not on the number of steps, so
    the averages of different batch sizes look equally far back. Early on it is a plain mean.

    The average replaces the learning rate's later decay (Sandler et al. 2023), which is what makes the losses of
    runs that are still at a high learning rate comparable. Batch statistics are not averaged: ``calibrate`` sets them.
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
        """Takes in the weights after a step of ``batch_size`` images, the ``samples_seen``-th sample being its last."""
        keep = min(math.exp(-batch_size / self._horizon), 1 - batch_size / samples_seen)
        torch._foreach_lerp_(self._averages, self._weights, 1 - keep)
