"""Tune callback that records and shows the reports and decisions of a run."""

from __future__ import annotations

from typing import Any

from ray import tune

from adaptive_ray.report.terminal import Progress
from adaptive_ray.run_directory.directory import RunDirectory, describe
from schedulers import LossExtrapolationScheduler, State
from trainables.report import TrainingReport


class RunCallback(tune.Callback):  # type: ignore[misc]
    """Writes every report and decision to the run's directory, the console and MLflow."""

    def __init__(
        self, scheduler: LossExtrapolationScheduler, directory: RunDirectory, progress: Progress, tracker: Any
    ) -> None:
        self._scheduler, self._directory = scheduler, directory
        self._progress, self._tracker = progress, tracker
        self._written = len(scheduler.decisions)
        self._restarts = len(scheduler.series.restarts)
        #: Most samples in a written report of each candidate; the last report may be a repetition after a resume.
        self._reached = {
            candidate: max(report.samples_seen for report in reports)
            for candidate, reports in directory.reports().items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks; each session creates its own

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        candidate = trial.config["candidate"]
        report = TrainingReport.from_dict(result)
        self.write_decisions()
        if report.samples_seen <= self._reached.get(candidate, -1):
            self._directory.append_report(candidate, report)  # repeated: only its checkpoint is new
            return
        self._reached[candidate] = report.samples_seen
        if report.decision is not None:
            self._directory.append_swap(report.decision)
            self._progress.swapped(report.decision)
        self._directory.append_report(candidate, report)
        self._progress.report(self._scheduler.race, candidate, report)
        if self._tracker is not None:
            self._tracker.report(candidate, report)

    def on_trial_recover(self, *_: Any, **__: Any) -> None:
        self.write_decisions()

    on_trial_error = on_trial_recover

    def write_decisions(self) -> None:
        """Writes and shows new decisions and restarts."""
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
