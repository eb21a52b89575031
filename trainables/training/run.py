"""A training run: trains until the next report, evaluates, swaps the candidate, saves and loads checkpoints."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainables.data import TrainingData
from trainables.evaluation.online import OnlineKnn
from trainables.evaluation.reference import ReferenceSet
from trainables.report import TrainingReport
from trainables.settings import TrainSettings
from trainables.training.broadcast import broadcast_from_rank0
from trainables.training.checkpoint import load_checkpoint, save_checkpoint
from trainables.training.metrics import Interval, training_report
from trainables.training.state import TrainState
from trainables.training.step import TrainStep

#: Remaining seconds from which on a run compiles its network.
_COMPILING_PAYS = 300


class Run:
    """Trains one candidate between reports.

    Arguments and errors are those of ``train``. ``resumed``: ``load`` follows, so that pretrained weights need not be
    loaded.
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
        self.state = TrainState(settings, data, device, pretrained=not resumed)
        self.step = TrainStep(self.state, data, device, memory=memory)
        self.reference = ReferenceSet(
            data.reference,
            self.step.loader.augment,
            temperature=settings.temperature,
            seed=settings.seed,
            device=device,
        )
        self.online: OnlineKnn | None = None
        if data.labelled is not None and settings.knn_every is not None:
            self.online = OnlineKnn(data.labelled, every=settings.knn_every, budget=settings.budget, device=device)
        self._interval: Interval

    def train_until(self, samples: int) -> None:
        """Trains until ``samples`` have been seen. The last step may exceed them by less than an update's images."""
        state, step, feed = self.state, self.step, self.step.loader.feed
        left = (state.settings.budget - state.samples) * state.seconds / max(state.samples, 1)
        # Each worker has measured other seconds.
        if step.may_compile and broadcast_from_rank0(left, step.loader.device) > _COMPILING_PAYS:
            step.compile()
        seen = state.samples
        started = time.perf_counter()
        updates = step.updates_until(samples)
        planned = time.perf_counter() - started
        step.prepare(updates)  # not training, hence not timed
        started, waited = time.perf_counter() - planned, feed.waited
        losses = [step(update) for update in updates]
        mean_loss = float(torch.stack(losses).mean())  # the only read from the device
        seconds = time.perf_counter() - started
        state.seconds += seconds
        self._interval = Interval(updates, mean_loss, state.samples - seen, seconds, (feed.waited - waited) / seconds)

    def evaluate(self) -> TrainingReport:
        """Reports the training since the last report, and what is measured of the EMA model."""
        state, measured = self.state, dict[str, Any](self.reference.measure(self.state.ema.model))
        if self.online is not None and self.online.is_due(state.samples - self._interval.images, state.samples):
            measured["online_knn_accuracy"] = self.online.measure(state.ema.encoder)
        return training_report(self.step, self._interval, measured)

    def choose(self, report: TrainingReport | None) -> TrainingReport | None:
        """Swaps to the candidate that the policy chooses, if there is a policy. All workers must call it together.

        Args:
            report: On rank 0: what ``evaluate`` returned.

        Returns:
            The report, with the policy's decision if it decides something.
        """
        state = self.state
        if state.swapping is None:
            return report
        if report is not None:
            decision = state.swapping.report(state.samples, report.reference_loss, state.seconds)
            if decision is not None:
                flat = {name: decision[name] for name in ("deviation", "forecast", "forecast_std")}
                report = replace(report, decision=decision, **flat)
        chosen = broadcast_from_rank0(state.swapping.current, self.step.loader.device)
        if chosen != state.candidate:
            state.swap_to(chosen)
        return report

    def save(self, directory: Path) -> None:
        """Writes a checkpoint into an existing directory. Only rank 0's is complete."""
        micro_batch = {"micro_batch": self.step.gradients.micro_batch}
        save_checkpoint({**self.state.state_dict(), **self._layout(), **micro_batch}, directory)

    def load(self, directory: Path) -> None:
        """Resumes from a checkpoint; see ``load_checkpoint`` and ``TrainState.load_state_dict``."""
        saved, gradients = load_checkpoint(directory, self.step.loader.device), self.step.gradients
        self.state.load_state_dict(saved)
        if all(saved[name] == value for name, value in self._layout().items()):
            # Batch statistics depend on the micro-batch: it must not grow because there is more memory now.
            gradients.micro_batch = min(gradients.micro_batch, saved["micro_batch"])

    def _layout(self) -> dict[str, int]:
        """Returns what the automatic micro-batch depends on, besides memory."""
        return {"largest_batch_size": self.step.largest_batch_size, "workers": self.step.loader.world_size}
