"""Everything that changes while a run trains: weights, optimizer, position, and what makes its batches."""

from __future__ import annotations

import time
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
from trainables.devices import computes_in_bfloat16, data_parallel
from trainables.evaluation.reference import ReferenceSet
from trainables.loader import Loader
from trainables.memory import largest_micro_batch
from trainables.settings import TrainingData, TrainSettings
from trainables.simclr.augment import Augment
from trainables.simclr.average import WeightAverage
from trainables.simclr.encoder import SimCLR
from trainables.simclr.gradcache import cached_backward
from trainables.simclr.losses import chance_level, loss_named
from trainables.simclr.optim import build_optimizer, correct_momentum, set_progress
from trainables.swapping import Swapping, agreed
from trainables.weights import SampleWeights, on_device

#: The file in a checkpoint's directory.
CHECKPOINT_FILE = "checkpoint.pt"


class Run:
    """A run between two reports.

    Args:
        settings: The run.
        data: Images.
        device: Where to train.
        resumed: Whether ``load`` follows, so that no pretrained weights are needed.

    Raises:
        MemoryError: Not even the smallest micro-batch fits.
    """

    def __init__(
        self, settings: TrainSettings, data: TrainingData, device: torch.device, *, resumed: bool = False
    ) -> None:
        self.settings, self.device = settings, device
        channels, size = data.images.shape[1], data.images.shape[2]
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            model = SimCLR(settings.encoder, channels, image_size=size, pretrained=not resumed)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and computes_in_bfloat16(device))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)
        self.average = WeightAverage(self.model, settings.average * settings.budget)
        self.optimizer = build_optimizer(settings.optimizer, self.model)
        self.loader = Loader(data, Augment(size, settings.augment), settings.seed, device)
        self._largest = max(candidate.batch_size for candidate in settings.candidates)
        if settings.micro_batch == "auto":
            limit = max(self.loader.shares(self._largest))
            self.micro_batch = largest_micro_batch(self.model, (channels, size, size), limit, device, self.autocast)
        else:
            self.micro_batch = settings.micro_batch
        self.parallel: nn.Module = data_parallel(self.model) if self.loader.workers > 1 else self.model
        self.reference = ReferenceSet(
            data.reference, self.loader.augment, temperature=settings.temperature, seed=settings.seed, device=device
        )
        self.weights = SampleWeights(settings.sample_weights, data, device)
        self.informed: InformedUpdates | None = None
        if settings.information is not None:
            score = batch_score(settings.information.score, data.strata, data.features, settings.seed)
            self.informed = InformedUpdates(settings.information, self.loader.stream, score, settings.budget)
            for candidate in settings.candidates:
                self.informed.alpha(candidate.batch_size)  # what it cannot be is said before work starts
        self.swapping: Swapping | None = None
        if settings.swap is not None:
            epoch = len(data.images)
            self.swapping = Swapping(settings.swap, settings.candidate, budget=settings.budget, epoch=epoch)
        self.samples, self.seconds = 0, 0.0
        self._since_report = (0, 0.0)  # samples and seconds at the last report
        self._loss = partial(loss_named(settings.loss), temperature=settings.temperature)
        self._images_per_update = settings.candidate.images_per_update  # that momentum was gathered with
        self._make_batches_of(settings.candidate)

    def _make_batches_of(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._shares = self.loader.shares(candidate.batch_size)

    def swap_to(self, candidate: Candidate) -> None:
        """Makes the batches of the coming steps as ``candidate`` says; all workers must do so at the same step."""
        if self.informed is None:
            self._bring_momentum_to(candidate.images_per_update)
        self._make_batches_of(candidate)

    def _bring_momentum_to(self, images: int) -> None:
        if images != self._images_per_update:
            correct_momentum(self.optimizer, self.settings.optimizer, self._images_per_update, images)
            self._images_per_update = images

    def train_until(self, samples: int) -> None:
        """Steps until ``samples`` have been seen; the last step may overshoot by less than an update's images."""
        self._since_report = (self.samples, self.seconds)
        started, waited = time.perf_counter(), self.loader.feed.waited
        losses = []
        self._taken: list[Update] = []
        while self.samples < samples:
            losses.append(self._step())
        self._mean_loss = float(torch.stack(losses).mean())  # the one read from the device
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self._data_wait = (self.loader.feed.waited - waited) / seconds

    def _step(self) -> Tensor:
        """One update: the weighted mean gradient of its batches. Returns their weighted mean loss."""
        update = self._next_update()
        size = self.candidate.batch_size
        images = len(update.weights) * size
        self._bring_momentum_to(images)
        progress = min((self.samples + images / 2) / self.settings.budget, 1.0)  # the middle of the step, for all sizes
        self.learning_rate = set_progress(self.optimizer, self.settings.optimizer, progress, images)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, group in enumerate(update.groups):
            waits = isinstance(self.parallel, DistributedDataParallel) and number < len(update.groups) - 1
            # Gradients travel once, with the last batch.
            with self.parallel.no_sync() if waits else nullcontext():  # type: ignore[operator]
                losses.append(self._backward(group, update, progress))
        self.optimizer.step()
        self.samples += images
        self.average.update(self.model, images, self.samples)
        self._taken.append(update)
        return torch.stack(losses).sum()

    def _next_update(self) -> Update:
        if self.informed is None:
            return Update.of_equals(self.candidate.accumulation)
        return self.informed.at(self.samples, self.candidate.batch_size)

    def _backward(self, group: range, update: Update, progress: float) -> Tensor:
        """Adds to the update's gradient the share of those of its batches that are each other's negatives.

        Returns:
            Their share of the loss.
        """
        size, own = self.candidate.batch_size, self._shares[self.loader.worker]
        positions = [self.samples + number * size for number in group]
        parts = -(-max(self._shares) // self.micro_batch)  # equally many on all workers
        views = [view for at in positions for view in self.loader.batch(at, size, parts, since=positions[0])]
        shares = [len(group) * share for share in self._shares]
        indices = np.concatenate([self.loader.indices(at, size) for at in positions])
        scores = None
        if len(group) > 1:  # one loss over batches that count unequally
            scores = on_device(np.repeat(update.weights[group], own), self.device)

        def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
            weights = self.weights(z_a, z_b, indices, progress, self._shares, len(group))
            if scores is not None:
                weights = scores if weights is None else weights * scores
            return self._loss(z_a, z_b, weights=weights, shares=shares) * float(update.weights[group].sum())

        if len(views) > 1:
            return cached_backward(self.parallel, views, loss, self.autocast)
        with self.autocast:
            z_a, z_b = self.parallel(views[0]()).chunk(2)
        value = loss(z_a, z_b)
        value.backward()
        return value.detach()

    def evaluate(self) -> dict[str, Any]:
        """The metrics of a report. Losses are in nats, throughput in images (not views) over all workers."""
        samples, seconds = self._since_report
        batches = [len(update.weights) for update in self._taken]
        negatives = [len(group) * self.candidate.batch_size for update in self._taken for group in update.groups]
        chance = float(np.mean([chance_level(self.settings.loss, images) for images in negatives]))
        return {
            "samples_seen": self.samples,
            "seconds": self.seconds,
            "batch_size": self.candidate.batch_size,
            "accumulation": self.candidate.accumulation,
            "micro_batch": min(self.micro_batch, max(self._shares)),
            "workers": self.loader.workers,
            "progress": min(self.samples / self.settings.budget, 1.0),
            "learning_rate": self.learning_rate,
            "train_loss": self._mean_loss,
            "train_loss_above_chance": self._mean_loss - chance,
            "images_per_second": (self.samples - samples) / max(self.seconds - seconds, 1e-9),
            "data_wait": self._data_wait,  # share of this worker's time
            "images_per_update": self.candidate.batch_size * float(np.mean(batches)),
            **self._methods(batches),
            **self.reference.measure(self.average.model),
        }

    def _methods(self, batches: list[int]) -> dict[str, Any]:
        """What accumulating until informed and weighing samples came to since the last report."""
        metrics: dict[str, Any] = {}
        if self.informed is not None:
            scores = np.concatenate([update.scores for update in self._taken])
            metrics = {
                "batches_per_update": float(np.mean(batches)),
                "information": float(scores.mean()),
                "least_information": float(scores.min()),
            }
        extremes = self.weights.extremes()
        return metrics if extremes is None else {**metrics, "weighted": extremes}

    def choose(self, metrics: dict[str, Any]) -> None:
        """Lets the policy, if there is one, choose what the coming steps train with. All workers call it together.

        Args:
            metrics: Of ``evaluate`` on the first worker, where a decision's numbers are added: ``decision`` (all of
                it), ``surprise``, ``forecast`` and ``forecast_std``.
        """
        if self.swapping is None:
            return
        if self.loader.worker == 0:
            decision = self.swapping.report(self.samples, metrics["reference_loss"], self.seconds)
            if decision is not None:
                flat = {name: decision[name] for name in ("surprise", "forecast", "forecast_std")}
                metrics.update(flat, decision=decision)
        chosen = agreed(self.swapping.current, self.device)
        if chosen != self.candidate:
            self.swap_to(chosen)

    def save(self, directory: Path) -> None:
        """Writes a checkpoint; the first worker's is complete."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batch_size": self.candidate.batch_size,
            "accumulation": self.candidate.accumulation,
            "largest_batch_size": self._largest,
            "workers": self.loader.workers,
            "micro_batch": self.micro_batch,
            "samples_seen": self.samples,
            "images_per_update": self._images_per_update,
            "seconds": self.seconds,
            "swapping": self.swapping.state() if self.swapping is not None else None,
        }
        torch.save(state, directory / CHECKPOINT_FILE)

    def load(self, directory: Path) -> None:
        """Goes on from a checkpoint: with its candidate where it swaps as this run does, else with this run's own.

        Raises:
            FileNotFoundError: There is no checkpoint.
        """
        file = directory / CHECKPOINT_FILE
        if not file.exists():
            raise FileNotFoundError(f"no checkpoint at {file}: resume_from must name a checkpoint's directory")
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.samples, self.seconds = state["samples_seen"], state["seconds"]
        self._images_per_update = state["images_per_update"]
        now, before = (self._largest, self.loader.workers), (state["largest_batch_size"], state["workers"])
        if now == before:  # more memory than then changes nothing: batch statistics depend on the micro-batch
            self.micro_batch = min(self.micro_batch, state["micro_batch"])
        wanted = self.candidate
        self._make_batches_of(Candidate(state["batch_size"], state["accumulation"]))
        if self.swapping is not None:
            if state["swapping"] is None:
                self.swapping.begin(self.samples, self.seconds)
            else:
                self.swapping.restore(state["swapping"])
                wanted = self.candidate
        self.swap_to(wanted)
