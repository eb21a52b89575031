"""Everything that changes while a run trains: weights, optimizer, position, and what makes its batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from schedulers import Candidate
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
        self.swapping: Swapping | None = None
        if settings.swap is not None:
            epoch = len(data.images)
            self.swapping = Swapping(settings.swap, settings.candidate, budget=settings.budget, epoch=epoch)
        self.samples, self.seconds = 0, 0.0
        self._since_report = (0, 0.0)  # samples and seconds at the last report
        self._make_batches_of(settings.candidate)

    def _make_batches_of(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._shares = self.loader.shares(candidate.batch_size)
        self.loss = partial(loss_named(self.settings.loss), temperature=self.settings.temperature, shares=self._shares)

    def swap_to(self, candidate: Candidate) -> None:
        """Makes the batches of the coming steps as ``candidate`` says; all workers must do so at the same step."""
        before, now = self.candidate.images_per_update, candidate.images_per_update
        correct_momentum(self.optimizer, self.settings.optimizer, before, now)
        self._make_batches_of(candidate)

    def train_until(self, samples: int) -> None:
        """Steps until ``samples`` have been seen; the last step may overshoot by less than an update's images."""
        self._since_report = (self.samples, self.seconds)
        started, waited = time.perf_counter(), self.loader.feed.waited
        losses = []
        while self.samples < samples:
            losses.append(self._step())
        self._mean_loss = float(torch.stack(losses).mean())  # the one read from the device
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self._data_wait = (self.loader.feed.waited - waited) / seconds

    def _step(self) -> Tensor:
        """One update: the mean gradient of the candidate's batches. Returns their mean loss."""
        size, batches = self.candidate.batch_size, self.candidate.accumulation
        images = self.candidate.images_per_update
        progress = min((self.samples + images / 2) / self.settings.budget, 1.0)  # the middle of the step, for all sizes
        self.learning_rate = set_progress(self.optimizer, self.settings.optimizer, progress, images)
        self.optimizer.zero_grad(set_to_none=True)
        parts = -(-max(self._shares) // self.micro_batch)  # equally many on all workers
        losses = []
        for number in range(batches):
            views = self.loader.batch(self.samples + number * size, size, parts)
            waits = isinstance(self.parallel, DistributedDataParallel) and number < batches - 1
            # Gradients travel once, with the last batch.
            with self.parallel.no_sync() if waits else nullcontext():  # type: ignore[operator]
                losses.append(self._backward(views))
        self.optimizer.step()
        self.samples += images
        self.average.update(self.model, images, self.samples)
        return torch.stack(losses).sum()

    def _backward(self, views: list[Callable[[], Tensor]]) -> Tensor:
        """Adds a batch's share of the update's gradient. Returns its share of the loss."""
        if len(views) > 1:
            return cached_backward(self.parallel, views, self._share_of_loss, self.autocast)
        with self.autocast:
            z_a, z_b = self.parallel(views[0]()).chunk(2)
        loss = self._share_of_loss(z_a, z_b)
        loss.backward()
        return loss.detach()

    def _share_of_loss(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        return self.loss(z_a, z_b) / self.candidate.accumulation

    def evaluate(self) -> dict[str, Any]:
        """The metrics of a report. Losses are in nats, throughput in images (not views) over all workers."""
        samples, seconds = self._since_report
        chance = chance_level(self.settings.loss, self.candidate.batch_size)
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
            **self.reference.measure(self.average.model),
        }

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
