"""Everything that changes while a run trains: weights, optimizer, position, and what makes its batches."""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from schedulers import Candidate
from trainables.batches import InformedUpdates, Update, batch_score
from trainables.data import TrainingData
from trainables.evaluation.reference import ReferenceSet
from trainables.settings import TrainSettings
from trainables.simclr.augment import Augment
from trainables.simclr.ema import WeightEMA
from trainables.simclr.encoder import SimCLR
from trainables.simclr.losses import LOSSES, chance_level, loss_named, told_of_images
from trainables.simclr.optim import build_optimizer, correct_momentum, set_progress
from trainables.training.broadcast import agreed
from trainables.training.checkpoint import load_checkpoint, save_checkpoint
from trainables.training.devices import computes_in_bfloat16, data_parallel
from trainables.training.gradients import ContrastiveGradients
from trainables.training.loader import Loader
from trainables.training.micro_batch import largest_micro_batch
from trainables.training.sample_weights import SampleWeights
from trainables.training.swapping import Swapping

#: Seconds that a run must still take for its network to be compiled.
_COMPILING_PAYS = 300


class Run:
    """A run between two reports.

    Args:
        settings: The run.
        data: Images.
        device: Where to train.
        resumed: Whether ``load`` follows, so that no pretrained weights are needed.
        memory: Bytes that the run may take on the CPU; see ``allotted_memory``.

    Raises:
        MemoryError: Not even the smallest micro-batch fits, or other processes hold this run's share of the memory.
    """

    def __init__(
        self,
        settings: TrainSettings,
        data: TrainingData,
        device: torch.device,
        *,
        resumed: bool = False,
        memory: int | None = None,
    ) -> None:
        self.settings, self.device = settings, device
        channels, size = data.images.shape[1], data.images.shape[2]
        self.model = initial_model(settings, data, device, pretrained=not resumed)
        bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and computes_in_bfloat16(device))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)
        self.ema = WeightEMA(self.model, settings.ema_horizon * settings.budget)
        self.optimizer = build_optimizer(settings.optimizer, self.model)
        self.loader = Loader(data, Augment(size, settings.augment), settings.seed, device)
        self._largest = max(candidate.batch_size for candidate in settings.candidates)
        if settings.micro_batch == "auto":
            limit = max(self.loader.shares(self._largest))
            shape = (channels, size, size)
            micro_batch = largest_micro_batch(self.model, shape, limit, device, self.autocast, memory)
        else:
            micro_batch = settings.micro_batch
        self.parallel: nn.Module = data_parallel(self.model) if self.loader.workers > 1 else self.model
        self.reference = ReferenceSet(
            data.reference, self.loader.augment, temperature=settings.temperature, seed=settings.seed, device=device
        )
        self.weights = SampleWeights(settings.sample_weights, data, device)
        named, told = told_of_images(loss_named(settings.loss))
        if not told:
            warnings.warn(
                f"loss {settings.loss} takes no argument 'images': an image that comes twice in a batch, as over an "
                "epoch's end, is its own negative",
                stacklevel=2,
            )
        loss = partial(named, temperature=settings.temperature)
        alone_on_gpu = device.type == "cuda" and self.loader.workers == 1
        self._may_compile = alone_on_gpu and settings.accelerate == "auto"
        # What is captured is repeated to the letter: a loss of one's own, and weights that change, may not be.
        repeats = settings.loss in LOSSES and settings.sample_weights.mode == "none"
        self._captures = alone_on_gpu and settings.accelerate != "none" and repeats
        self.gradients = ContrastiveGradients(
            self.parallel, self.loader, loss, self.weights, micro_batch, self.autocast, capture=self._captures
        )
        self.informed: InformedUpdates | None = None
        if settings.information is not None:
            score = batch_score(settings.information.score, data.strata, data.features, settings.seed)
            self.informed = InformedUpdates(settings.information, self.loader.stream, score, settings.budget)
            for candidate in settings.candidates:
                self.informed.mean_images(candidate.batch_size)  # an alpha that is never reached is said at once
        self.swapping: Swapping | None = None
        if settings.swap is not None:
            epoch = len(data.images)
            self.swapping = Swapping(settings.swap, settings.candidate, budget=settings.budget, epoch=epoch)
        self.samples, self.seconds = 0, 0.0
        self._since_report = (0, 0.0)  # samples and seconds at the last report
        self._images_per_update = settings.candidate.images_per_update  # that momentum was gathered with
        self.candidate = settings.candidate

    def swap_to(self, candidate: Candidate) -> None:
        """Makes the batches of the coming steps as ``candidate`` says; all workers must do so at the same step."""
        if self.informed is None:
            self._bring_momentum_to(candidate.images_per_update)
        self.candidate = candidate

    def _bring_momentum_to(self, images: int) -> None:
        if images != self._images_per_update:
            correct_momentum(self.optimizer, self.settings.optimizer, self._images_per_update, images)
            self._images_per_update = images

    def train_until(self, samples: int) -> None:
        """Steps until ``samples`` have been seen; the last step may overshoot by less than an update's images."""
        if self._is_long():
            self.compile()
        self._since_report = (self.samples, self.seconds)
        started = time.perf_counter()
        self._updates = self._updates_until(samples)
        planned = time.perf_counter() - started
        self._prepare()  # no training, hence on nobody's clock
        started, waited = time.perf_counter() - planned, self.loader.feed.waited
        losses = [self._step(update) for update in self._updates]
        self._mean_loss = float(torch.stack(losses).mean())  # the one read from the device
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self._data_wait = (self.loader.feed.waited - waited) / seconds

    def compile(self) -> None:
        """Fuses the kernels of the network and of the augmentation, where settings and device allow it.

        It takes about twenty seconds a batch size, when the size is met, and saves a quarter of a GPU's step.
        """
        if self._may_compile:
            self.gradients.compile()
            self._may_compile = False

    def _is_long(self) -> bool:
        seconds_left = (self.settings.budget - self.samples) * self.seconds / max(self.samples, 1)
        return seconds_left > _COMPILING_PAYS

    def _updates_until(self, samples: int) -> list[Update]:
        """Known ahead, and the same on all workers."""
        if self.informed is None:
            left = samples - self.samples
            return [Update.of_equals(self.candidate.accumulation)] * -(-left // self.candidate.images_per_update)
        mine = None
        if self.loader.worker == 0:
            mine = self.informed.until(self.samples, samples, self.candidate.batch_size)
        return agreed(mine, self.device)

    def _prepare(self) -> None:
        position, size, groups = self.samples, self.candidate.batch_size, []
        for update in self._updates:
            groups += [
                range(position + size * group[0], position + size * (group[-1] + 1), size) for group in update.groups
            ]
            position += size * len(update.weights)
        self.gradients.prepare(groups, size)

    def _step(self, update: Update) -> Tensor:
        """The weighted mean gradient of an update's batches. Returns their weighted mean loss."""
        size = self.candidate.batch_size
        images = len(update.weights) * size
        self._bring_momentum_to(images)
        progress = min((self.samples + images / 2) / self.settings.budget, 1.0)  # the middle of the step, for all sizes
        self.learning_rate = set_progress(self.optimizer, self.settings.optimizer, progress, images)
        self.optimizer.zero_grad(set_to_none=not self._captures)  # graphs add to the tensors that they were given
        losses = []
        for number, group in enumerate(update.groups):
            waits = isinstance(self.parallel, DistributedDataParallel) and number < len(update.groups) - 1
            # Gradients travel once, with the last batch.
            with self.parallel.no_sync() if waits else nullcontext():  # type: ignore[operator]
                positions = [self.samples + batch * size for batch in group]
                losses.append(self.gradients.add(positions, size, update.weights[group], progress))
        self.optimizer.step()
        self.samples += images
        self.ema.update(images, self.samples)
        return torch.stack(losses).sum()

    def evaluate(self) -> dict[str, Any]:
        """The metrics of a report. Losses are in nats, throughput in images (not views) over all workers."""
        samples, seconds = self._since_report
        batches = [len(update.weights) for update in self._updates]
        negatives = [len(group) * self.candidate.batch_size for update in self._updates for group in update.groups]
        chance = float(np.mean([chance_level(self.settings.loss, images) for images in negatives]))
        return {
            "samples_seen": self.samples,
            "seconds": self.seconds,
            "batch_size": self.candidate.batch_size,
            "accumulation": self.candidate.accumulation,
            "micro_batch": min(self.gradients.micro_batch, max(self.loader.shares(self.candidate.batch_size))),
            "workers": self.loader.workers,
            "progress": min(self.samples / self.settings.budget, 1.0),
            "learning_rate": self.learning_rate,
            "train_loss": self._mean_loss,
            "train_loss_above_chance": self._mean_loss - chance,
            "images_per_second": (self.samples - samples) / max(self.seconds - seconds, 1e-9),
            "data_wait": self._data_wait,  # share of this worker's time
            "images_per_update": self.candidate.batch_size * float(np.mean(batches)),
            **self._methods(batches),
            **self.reference.measure(self.ema.model),
        }

    def _methods(self, batches: list[int]) -> dict[str, Any]:
        """What accumulating until informed and weighing samples came to since the last report."""
        metrics: dict[str, Any] = {}
        if self.informed is not None:
            scores = np.concatenate([update.scores for update in self._updates])
            metrics = {
                "batches_per_update": float(np.mean(batches)),
                "information": float(scores.mean()),
                "least_information": float(scores.min()),
                "informed": float(np.mean([update.informed for update in self._updates])),
                "alpha": self.informed.alpha(self.candidate.batch_size),
            }
        extremes = self.weights.extremes()
        return metrics if extremes is None else {**metrics, "weighted": extremes}

    def choose(self, metrics: dict[str, Any]) -> None:
        """Lets the policy, if there is one, choose what the coming steps train with. All workers call it together.

        Args:
            metrics: Of ``evaluate`` on the first worker, where a decision's numbers are added: ``decision`` (all of
                it), ``deviation``, ``forecast`` and ``forecast_std``.
        """
        if self.swapping is None:
            return
        if self.loader.worker == 0:
            decision = self.swapping.report(self.samples, metrics["reference_loss"], self.seconds)
            if decision is not None:
                flat = {name: decision[name] for name in ("deviation", "forecast", "forecast_std")}
                metrics.update(flat, decision=decision)
        chosen = agreed(self.swapping.current, self.device)
        if chosen != self.candidate:
            self.swap_to(chosen)

    def save(self, directory: Path) -> None:
        """Writes a checkpoint; the first worker's is complete."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batch_size": self.candidate.batch_size,
            "accumulation": self.candidate.accumulation,
            "largest_batch_size": self._largest,
            "workers": self.loader.workers,
            "micro_batch": self.gradients.micro_batch,
            "samples_seen": self.samples,
            "images_per_update": self._images_per_update,
            "seconds": self.seconds,
            "swapping": self.swapping.state() if self.swapping is not None else None,
        }
        save_checkpoint(state, directory)

    def load(self, directory: Path) -> None:
        """Continues from a checkpoint: with its candidate where it swaps as this run does, else with this run's own.

        Raises:
            CheckpointError: There is none, or it is damaged.
        """
        state = load_checkpoint(directory, self.device)
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.samples, self.seconds = state["samples_seen"], state["seconds"]
        self._images_per_update = state["images_per_update"]
        now, before = (self._largest, self.loader.workers), (state["largest_batch_size"], state["workers"])
        if now == before:  # more memory than then changes nothing: batch statistics depend on the micro-batch
            self.gradients.micro_batch = min(self.gradients.micro_batch, state["micro_batch"])
        wanted = self.candidate
        self.candidate = Candidate(state["batch_size"], state["accumulation"])
        if self.swapping is not None:
            if state["swapping"] is None:
                self.swapping.begin(self.samples, self.seconds)
            else:
                self.swapping.restore(state["swapping"])
                wanted = self.candidate
        self.swap_to(wanted)


def initial_model(
    settings: TrainSettings, data: TrainingData, device: torch.device, *, pretrained: bool = True
) -> SimCLR:
    """The network that a run starts from, by its seed and nothing else."""
    channels, size = data.images.shape[1], data.images.shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        model = SimCLR(settings.encoder, channels, image_size=size, pretrained=pretrained)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
