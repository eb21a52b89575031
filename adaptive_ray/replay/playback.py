"""A recorded sweep played to any Tune scheduler: Ray's own classes decide on recorded results, in milliseconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from adaptive_ray.replay.recordings import Axis, Sweep
from schedulers.tune.ray_compat import detached_trial

#: What schedulers are told: the share of the budget that is spent, in percent, and the loss.
TIME, METRIC, WHOLE = "percent", "loss", 100.0

#: Every trial reports, pauses and stops once a report at most; a scheduler that asks for more is caught in a loop.
_MAX_ROUNDS = 100_000


@dataclass
class Playback:
    """The part of Tune's controller that schedulers talk to, over trials that walk along recorded curves.

    All trials start together, and the one whose next report comes first reports first; ties are broken by the seed.
    """

    sweep: Sweep
    axis: Axis
    scheduler: TrialScheduler
    seconds: float = 0.0  # that the scheduler took
    calls: int = 0
    trials: dict[str, Trial] = field(default_factory=dict)
    reported: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Plays the sweep to its end."""
        for key in self.sweep.by_key:
            trial = detached_trial(key, {"candidate": key})
            self.trials[key], self.reported[key] = trial, 0
            self.scheduler.on_trial_add(self, trial)
        budget = self.sweep.budget(self.axis)
        ends = {key: int(np.sum(run.time(self.axis) <= budget)) for key, run in self.sweep.by_key.items()}
        turn = np.random.default_rng((self.sweep.seed, len(ends))).permutation(len(ends))
        first = dict(zip(self.trials, turn.tolist(), strict=True))
        for _ in range(_MAX_ROUNDS):
            self._start()
            running = [key for key, trial in self.trials.items() if trial.status == Trial.RUNNING]
            if not running:
                return
            key = min(running, key=lambda key: (self._next(key), first[key]))
            self._report(key, last=self.reported[key] + 1 >= ends[key], share=WHOLE / budget)
        raise RuntimeError(f"{type(self.scheduler).__name__} does not come to an end")

    def _next(self, key: str) -> float:
        return float(self.sweep.by_key[key].time(self.axis)[self.reported[key]])

    def _start(self) -> None:
        for _ in self.trials:
            trial = self.scheduler.choose_trial_to_run(self)
            if trial is None or trial.status not in (Trial.PENDING, Trial.PAUSED):
                return
            trial.status = Trial.RUNNING

    def _report(self, key: str, *, last: bool, share: float) -> None:
        trial, run, index = self.trials[key], self.sweep.by_key[key], self.reported[key]
        result = {
            TIME: share * float(run.time(self.axis)[index]),
            METRIC: run.reference_loss[index],
            "training_iteration": index + 1,
            "time_total_s": run.seconds[index],
            "trial_id": key,
        }
        self.reported[key] = index + 1
        started = time.perf_counter()
        action = self.scheduler.on_trial_result(self, trial, result)
        self.seconds, self.calls = self.seconds + time.perf_counter() - started, self.calls + 1
        trial.update_last_result(result)
        if trial.status != Trial.RUNNING:  # the scheduler has stopped it itself
            return
        if last or action == TrialScheduler.STOP:
            self.stop_trial(trial)
        elif action == TrialScheduler.PAUSE:
            trial.status = Trial.PAUSED

    # --- what schedulers ask of their controller ----------------------------------------------------------------

    def get_trials(self) -> list[Trial]:
        return list(self.trials.values())

    def get_live_trials(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.status != Trial.TERMINATED]

    def stop_trial(self, trial: Trial) -> None:
        """As ``TuneController.stop_trial``: one that ran completes, one that waited is removed."""
        before: Any = trial.status
        if before == Trial.TERMINATED:
            return
        if before == Trial.RUNNING:
            self.scheduler.on_trial_complete(self, trial, trial.last_result)
        else:
            self.scheduler.on_trial_remove(self, trial)
        trial.status = Trial.TERMINATED
