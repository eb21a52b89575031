"""What a worker does in a race: it measures its throughput alone, lets others do so, and waits for the decision."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import ray
import torch
import torch.distributed as dist

from trainables.on_ray.coordinator import Measurement, Start
from trainables.on_ray.race_terms import RaceTerms
from trainables.settings import TrainSettings
from trainables.training.broadcast import broadcast_from_rank0
from trainables.training.run import Run
from trainables.training.throughput import measure_throughput

#: Seconds between two questions, and the longest wait for a turn.
_ASK_EVERY, _LONGEST = 0.2, 600.0
#: Seconds of a measurement.
_ON_GPU, _ON_CPU = 1.5, 1.0
#: A restart of the winner with more workers must save this many times what it costs.
_GAIN = 3.0


class DeviceBusyError(RuntimeError):
    """Raised if a trial did not get its device to itself in time."""


class Turns:
    """The part of a race that concerns one worker.

    Args:
        terms: Terms of the race.
        trial: Key of the candidate.
        device: Device of this worker.
        threads: Threads of this worker by the trial's configuration.
    """

    def __init__(self, terms: RaceTerms, trial: str, device: torch.device, threads: int) -> None:
        self._terms, self._trial, self._device, self._threads = terms, trial, device, threads
        self._rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        names: list[Any] = [None] * workers
        if workers > 1:
            dist.all_gather_object(names, _name(device))
        else:
            names = [_name(device)]
        self._devices = sorted(set(names))
        self._samples, self._window = 0, terms.window
        self._start = Start(None)
        self.measurement: Measurement | None = None

    def settings(self, settings: TrainSettings) -> TrainSettings:
        """Returns the settings to start with: with the samples of a budget in seconds, if the throughput is known."""
        start = self._ask("start", self._trial) if self._rank == 0 else None
        self._start = broadcast_from_rank0(start, self._device)
        self.measurement = self._start.measurement
        return self._timed(settings) if self.measurement is not None else settings

    def begin(self, run: Run) -> TrainSettings | None:
        """Measures the throughput of a run unless it is known, and waits until it may train.

        Returns:
            The settings with the samples of a budget in seconds, if they follow from this measurement.

        Raises:
            DeviceBusyError: Another trial kept the device for ten minutes.
            ValueError: The window is too short for a forecast.
        """
        terms, self._samples = self._terms, run.state.samples
        timed = None
        if self.measurement is None:
            startup = time.time() - terms.started
            self._until_granted("request_turn", _LONGEST)
            self.measurement = self._measure(run, startup)
            if self._rank == 0:
                self._ask("end_turn", self._trial, self.measurement)
            timed = self._timed(run.state.settings) if terms.time is not None else None
        if self._start.again:  # Tune restarts a candidate when its resources change
            torch.set_num_threads(self._threads)
            self._until_granted("request_training")
        elif self._samples >= self._window:  # restarted after its window
            self._await_decision()
        else:
            torch.set_num_threads(terms.threads)
            self._until_granted("request_training")
        return timed

    def _timed(self, settings: TrainSettings) -> TrainSettings:
        terms, measured = self._terms, self.measurement
        if terms.time is None or measured is None:
            return settings
        self._window = terms.time.window_samples(settings, measured.throughput) if self._window else 0
        return terms.time.settings(settings, measured.throughput, self._start.origin)

    def after_report(self, samples: int) -> None:
        """Waits after a report: for trials that measure, and at the end of the window for the decision.

        Args:
            samples: Samples seen.
        """
        before, self._samples = self._samples, samples
        if self._start.again or samples < self._window:
            self._until_granted("request_training")
        elif before < self._window:
            self._await_decision()

    def _await_decision(self) -> None:
        if self._rank == 0:
            self._ask("leave", self._trial, for_good=False)  # others may use the device
        while not self._ask("is_over"):  # all workers ask: a collective operation would time out
            time.sleep(_ASK_EVERY)
        assert self.measurement is not None
        terms = self._terms
        torch.set_num_threads(terms.in_place_threads if self.measurement.in_place else terms.winner_threads)

    def _measure(self, run: Run, startup: float) -> Measurement:
        terms, state = self._terms, run.state
        workers, shards = run.step.loader.world_size, run.step.loader.shard_sizes(state.candidate.batch_size)
        same = terms.winner_workers == workers and terms.winner_threads == terms.in_place_threads
        seconds = (_ON_GPU if self._device.type == "cuda" else _ON_CPU) / (1 if same else 2)
        torch.set_num_threads(terms.in_place_threads)
        here = measure_throughput(run, seconds=seconds)
        cramped = terms.winner_memory and run.step.gradients.micro_batch < max(shards)
        if same:
            return broadcast_from_rank0(Measurement(here, in_place=not cramped), self._device)
        # Each of the winner's workers would have a smaller shard. Communication between more workers is not counted.
        size = max(state.candidate.batch_size * workers // terms.winner_workers, workers, 2)
        smaller = replace(state.candidate, batch_size=size)
        if state.settings.information is not None:  # alpha may be out of reach for smaller micro-batches
            smaller = state.candidate
        alone = terms.winner_workers == 1
        torch.set_num_threads(terms.winner_threads)
        per_worker = measure_throughput(run, seconds=seconds, candidate=smaller, graphs=alone) / workers
        there = per_worker * terms.winner_workers
        left = terms.time.budget if terms.time else (state.settings.budget - state.samples) / here
        restart = terms.restart or cramped or left * (1 - here / there) > _GAIN * startup
        measured = Measurement(there if restart else here, in_place=not restart)
        return broadcast_from_rank0(measured, self._device)

    def _until_granted(self, question: str, longest: float | None = None) -> None:
        """Asks until no other trial is in the way.

        Raises:
            DeviceBusyError: That took longer than ``longest`` seconds.
        """
        problem = ""
        if self._rank == 0:
            started = time.monotonic()
            while waiting := self._ask(question, self._trial, self._devices):
                if longest is not None and time.monotonic() - started > longest:
                    problem = f"{', '.join(waiting)} kept {', '.join(self._devices)} for {longest:.0f} s"
                    break
                time.sleep(_ASK_EVERY)
        if problem := broadcast_from_rank0(problem, self._device):
            raise DeviceBusyError(f"throughput of {self._trial} cannot be measured: candidate {problem}")

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        return ray.get(getattr(self._terms.coordinator, method).remote(*arguments, **named))


def _name(device: torch.device) -> str:
    """Returns the name of a device that is unique in the cluster."""
    node = ray.get_runtime_context().get_node_id()
    if device.type != "cuda":
        return f"the CPU of node {node[:8]}"
    return f"GPU {torch.cuda.get_device_properties(device).uuid} of node {node[:8]}"
