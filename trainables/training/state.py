"""The state of a training run: model, EMA, optimizer, swap policy and position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from schedulers import Candidate
from trainables.data import TrainingData
from trainables.settings import TrainSettings
from trainables.simclr.ema import WeightEMA
from trainables.simclr.encoder import SimCLR
from trainables.simclr.optim import build_optimizer, correct_momentum
from trainables.training.swapping import Swapping


class TrainState:
    """Holds everything that training changes. ``state_dict`` is what a checkpoint keeps of it.

    Of ``data``, only the number and the shape of the images are used. ``pretrained`` weights need not be loaded if
    ``load_state_dict`` follows.
    """

    def __init__(
        self, settings: TrainSettings, data: TrainingData, device: torch.device, *, pretrained: bool = True
    ) -> None:
        self.settings = settings
        self.model = initial_model(settings, data, device, pretrained=pretrained)
        self.ema = WeightEMA(self.model, settings.ema_horizon * settings.budget)
        self.optimizer = build_optimizer(settings.optimizer, self.model)
        self.candidate = settings.candidate
        self.samples, self.seconds = 0, 0.0
        self.swapping: Swapping | None = None
        if settings.swap is not None:
            epoch = len(data.images)
            self.swapping = Swapping(settings.swap, settings.candidate, budget=settings.budget, epoch=epoch)
        self._images_per_update = settings.candidate.images_per_update  # of the steps that momentum comes from

    def swap_to(self, candidate: Candidate) -> None:
        """Trains with ``candidate`` from the next step on. All workers must call it at the same step."""
        if self.settings.information is None:
            self.rescale_momentum(candidate.images_per_update)
        self.candidate = candidate

    def rescale_momentum(self, images: int) -> None:
        """Adapts the optimizer's momentum to updates of ``images`` images."""
        if images != self._images_per_update:
            correct_momentum(self.optimizer, self.settings.optimizer, self._images_per_update, images)
            self._images_per_update = images

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as tensors, numbers and text."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batch_size": self.candidate.batch_size,
            "accumulation": self.candidate.accumulation,
            "samples_seen": self.samples,
            "images_per_update": self._images_per_update,
            "seconds": self.seconds,
            "swapping": self.swapping.state() if self.swapping is not None else None,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        A run that swaps continues with the saved candidate if the saved run swapped too, else with its own.
        """
        self.model.load_state_dict(saved["model"])
        self.ema.model.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.samples, self.seconds = saved["samples_seen"], saved["seconds"]
        self._images_per_update = saved["images_per_update"]
        candidate = self.candidate
        if self.swapping is not None:
            if saved["swapping"] is None:
                self.swapping.begin(self.samples, self.seconds)
            else:
                self.swapping.restore(saved["swapping"])
                candidate = Candidate(saved["batch_size"], saved["accumulation"])
        self.swap_to(candidate)


def initial_model(
    settings: TrainSettings, data: TrainingData, device: torch.device, *, pretrained: bool = True
) -> SimCLR:
    """Returns the model that a run starts from. It depends on the settings and their seed only."""
    channels, size = data.images.shape[1], data.images.shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        model = SimCLR(settings.encoder, channels, image_size=size, pretrained=pretrained)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
