"""Replays a recorded sweep to any scheduler of Ray Tune, in milliseconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from adaptive_ray.replay.recordings import Axis, Sweep
from schedulers.tune.ray_compat import detached_trial

#: Entries of the results: the percentage of the budget that is spent, and the loss.
TIME, METRIC, WHOLE = "percent", "loss", 100.0

#: Upper limit of results; a scheduler that exceeds it never ends.
_MAX_ROUNDS = 100_000


@dataclass
class Playback:
    """A replacement of Tune's controller whose trials report recorded results.

    All trials start together and report in the order of time; ties are broken by the seed.
    """

    sweep: Sweep
    axis: Axis
    scheduler: TrialScheduler
    seconds: float = 0.0  # spent in the scheduler
    calls: int = 0
    trials: dict[str, Trial] = field(default_factory=dict)
    reported: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Replays the whole sweep."""
        for key in self.sweep.by_key:
            trial = detached_trial(key, {"candidate": key})
            self.trials[key], self.reported[key] = trial, 0
            self.scheduler.on_trial_add(self, trial)
        budget = self.sweep.budget(self.axis)
        ends = self.sweep.counts(self.axis)
        turn = np.random.default_rng((self.sweep.seed, len(ends))).permutation(len(ends))
        first = dict(zip(self.trials, turn.tolist(), strict=True))
        for _ in range(_MAX_ROUNDS):
            self._start()
            running = [key for key, trial in self.trials.items() if trial.status == Trial.RUNNING]
            if not running:
                return
            key = min(running, key=lambda key: (self._next(key), first[key]))
            self._report(key, last=self.reported[key] + 1 >= ends[key], scale=WHOLE / budget)
        raise RuntimeError(f"{type(self.scheduler).__name__} does not terminate")

    def _next(self, key: str) -> float:
        return float(self.sweep.by_key[key].time(self.axis)[self.reported[key]])

    def _start(self) -> None:
        for _ in self.trials:
            trial = self.scheduler.choose_trial_to_run(self)
            if trial is None or trial.status not in (Trial.PENDING, Trial.PAUSED):
                return
            trial.status = Trial.RUNNING

    def _report(self, key: str, *, last: bool, scale: float) -> None:
        trial, run, index = self.trials[key], self.sweep.by_key[key], self.reported[key]
        result = {
            TIME: scale * float(run.time(self.axis)[index]),
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
        if trial.status != Trial.RUNNING:  # stopped by the scheduler
            return
        if last or action == TrialScheduler.STOP:
            self.stop_trial(trial)
        elif action == TrialScheduler.PAUSE:
            trial.status = Trial.PAUSED

    # --- called by schedulers -----------------------------------------------------------------------------------

    def get_trials(self) -> list[Trial]:
        return list(self.trials.values())

    def get_live_trials(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.status != Trial.TERMINATED]

    def stop_trial(self, trial: Trial) -> None:
        """Like ``TuneController.stop_trial``: completes a running trial, and removes a waiting one."""
        before: Any = trial.status
        if before == Trial.TERMINATED:
            return
        if before == Trial.RUNNING:
            self.scheduler.on_trial_complete(self, trial, trial.last_result)
        else:
            self.scheduler.on_trial_remove(self, trial)
        trial.status = Trial.TERMINATED
