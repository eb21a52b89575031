"""The training step: loads an update's batches, computes their gradient and updates the weights."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.batches import AdaptiveAccumulation, Update, batch_score
from trainables.data import TrainingData
from trainables.simclr.augment import Augment
from trainables.simclr.losses import LOSSES, loss_named, with_images_argument
from trainables.simclr.optim import set_progress
from trainables.training.broadcast import broadcast_from_rank0
from trainables.training.data_parallel import data_parallel
from trainables.training.gradients import ContrastiveGradients
from trainables.training.loader import Loader
from trainables.training.micro_batch import largest_micro_batch
from trainables.training.precision import supports_bfloat16
from trainables.training.sample_weights import SampleWeights
from trainables.training.state import TrainState


class TrainStep:
    """Makes updates of a run's state.

    Arguments and errors are those of ``train``.

    Raises:
        ValueError: ``alpha`` of adaptive accumulation is never reached.
    """

    def __init__(
        self, state: TrainState, data: TrainingData, device: torch.device, *, memory: int | None = None
    ) -> None:
        settings = state.settings
        self.state = state
        channels, size = data.images.shape[1], data.images.shape[2]
        bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and supports_bfloat16(device))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)
        self.loader = Loader(data, Augment(size, settings.augment), settings.seed, device)
        self.largest_batch_size = max(candidate.batch_size for candidate in settings.candidates)
        if settings.micro_batch == "auto":
            limit = max(self.loader.shard_sizes(self.largest_batch_size))
            shape = (channels, size, size)
            micro_batch = largest_micro_batch(state.model, shape, limit, device, self.autocast, memory)
        else:
            micro_batch = settings.micro_batch
        distributed = self.loader.world_size > 1
        self.parallel: nn.Module = data_parallel(state.model) if distributed else state.model
        self.weights = SampleWeights(settings.sample_weights, data, device)
        loss, takes_images = with_images_argument(loss_named(settings.loss))
        if not takes_images:
            warnings.warn(
                f"loss {settings.loss} takes no argument 'images': an image that occurs twice in a batch, as at the "
                "end of an epoch, is its own negative",
                stacklevel=3,
            )
        on_gpu = device.type == "cuda"
        #: Whether ``compile`` would compile; the same on all workers.
        self.may_compile = on_gpu and settings.accelerate == "auto"
        # A CUDA graph replays the same operations: custom losses and weights that change may differ between steps.
        replayable = settings.loss in LOSSES and settings.sample_weights.mode == "none"
        self._uses_graphs = on_gpu and not distributed and settings.accelerate != "none" and replayable
        self.gradients = ContrastiveGradients(
            self.parallel,
            self.loader,
            partial(loss, temperature=settings.temperature),
            self.weights,
            micro_batch,
            self.autocast,
            capture=self._uses_graphs,
        )
        self.accumulation: AdaptiveAccumulation | None = None
        if settings.information is not None:
            score = batch_score(settings.information.score, data.strata, data.features, settings.seed)
            self.accumulation = AdaptiveAccumulation(settings.information, self.loader.stream, score, settings.budget)
            for candidate in settings.candidates:
                self.accumulation.mean_images(candidate.batch_size)  # raises now if alpha is never reached
        self.learning_rate = 0.0

    def compile(self) -> None:
        """Compiles the network and the augmentation, if the settings and the device allow it.

        Compiling takes about twenty seconds for each new batch size and saves a quarter of a step on a GPU. All workers
        must call it before the same step.
        """
        if self.may_compile:
            self.gradients.compile()
            self.may_compile = False

    def updates_until(self, samples: int) -> list[Update]:
        """Returns the updates until ``samples`` have been seen. They are the same on all workers."""
        state = self.state
        if self.accumulation is None:
            left = samples - state.samples
            count = -(-left // state.candidate.images_per_update)
            return [Update.of_equals(state.candidate.accumulation)] * count
        updates = None
        if self.loader.rank == 0:
            updates = self.accumulation.until(state.samples, samples, state.candidate.batch_size)
        return broadcast_from_rank0(updates, self.loader.device)

    def prepare(self, updates: list[Update]) -> None:
        """Compiles and captures what ``updates`` need; nothing is trained."""
        position, size, groups = self.state.samples, self.state.candidate.batch_size, []
        for update in updates:
            groups += [
                range(position + size * group[0], position + size * (group[-1] + 1), size) for group in update.groups
            ]
            position += size * len(update.weights)
        self.gradients.prepare(groups, size)

    def __call__(self, update: Update) -> Tensor:
        """Updates the weights with the weighted mean gradient of an update's batches.

        Returns:
            Weighted mean loss of the batches [], on the device.
        """
        state, settings = self.state, self.state.settings
        size = state.candidate.batch_size
        images = len(update.weights) * size
        state.rescale_momentum(images)
        progress = min((state.samples + images / 2) / settings.budget, 1.0)  # at the middle of the step
        self.learning_rate = set_progress(state.optimizer, settings.optimizer, progress, images)
        state.optimizer.zero_grad(set_to_none=not self._uses_graphs)  # graphs add to the tensors of their capture
        losses = []
        for number, group in enumerate(update.groups):
            accumulates = isinstance(self.parallel, DistributedDataParallel) and number < len(update.groups) - 1
            # Gradients are synchronised once, with the last batch.
            with self.parallel.no_sync() if accumulates else nullcontext():  # type: ignore[operator]
                positions = [state.samples + batch * size for batch in group]
                losses.append(self.gradients.add(positions, size, update.weights[group], progress))
        state.optimizer.step()
        state.samples += images
        state.ema.update(images, state.samples)
        return torch.stack(losses).sum()
