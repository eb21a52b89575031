"""Records and shows what trials report to Tune during a run."""

from __future__ import annotations

from typing import Any

from ray import tune

from adaptive_ray.report.terminal import Progress
from adaptive_ray.run_directory.directory import RunDirectory, describe
from schedulers import LossExtrapolationScheduler, State

#: What candidates are compared by.
METRIC = "reference_loss"

#: What is kept of a report; Tune adds a dozen entries of its own.
_REPORTED = (
    "samples_seen", "seconds", "batch_size", "accumulation", "micro_batch", "workers", "progress", "learning_rate",
    "train_loss", "train_loss_above_chance", "images_per_second", "data_wait", METRIC, "alignment", "uniformity",
    "rankme", "images_per_update", "batches_per_update", "information", "least_information", "informed", "alpha",
    "weighted", "forecast", "deviation", "checkpoint_path",
)  # fmt: skip


class RunCallback(tune.Callback):  # type: ignore[misc]
    """Writes down every report and every decision as they come, and shows them."""

    def __init__(
        self, scheduler: LossExtrapolationScheduler, directory: RunDirectory, progress: Progress, tracker: Any
    ) -> None:
        self._scheduler, self._directory = scheduler, directory
        self._progress, self._tracker = progress, tracker
        self._written = len(scheduler.decisions)
        self._restarts = len(scheduler.series.restarts)
        #: How far every candidate's written reports reach.
        self._reached: dict[str, float] = {}
        for report in directory.reports():  # the last one may be a repetition, after a resume from an older checkpoint
            reached = self._reached.get(report["candidate"], 0)
            self._reached[report["candidate"]] = max(report["samples_seen"], reached)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores callbacks to restore them; every session makes its own

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        candidate = trial.config["candidate"]
        report = {name: result[name] for name in _REPORTED if name in result}
        self.write_decisions()
        if report.get("samples_seen", 0) <= self._reached.get(candidate, -1):
            self._directory.append_report(candidate, report)  # it names the checkpoint that there is now
            return
        self._reached[candidate] = report.get("samples_seen", 0)
        if "decision" in result:
            self._directory.append_swap(result["decision"])
            self._progress.swapped(result["decision"])
        self._directory.append_report(candidate, report)
        self._progress.report(self._scheduler.race, candidate, report)
        if self._tracker is not None:
            self._tracker.report(candidate, report)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.write_decisions()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.write_decisions()

    def write_decisions(self) -> None:
        """Writes and shows what has been decided since."""
        for decision in self._scheduler.decisions[self._written :]:
            self._directory.append_decision(describe(decision))
            self._progress.decided(decision)
            if self._tracker is not None and decision.state is State.PRUNED:
                self._tracker.pruned(str(decision.key), decision.reason)
            elif self._tracker is not None and decision.state is State.RACING:
                self._tracker.racing(str(decision.key), decision.reason)
        self._written = len(self._scheduler.decisions)
        for restart in self._scheduler.series.restarts[self._restarts :]:
            self._progress.restarted(restart)
            self._restarts += 1
