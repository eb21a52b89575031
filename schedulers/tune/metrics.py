"""Reads the metrics that a scheduler needs from the results of trials."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial

from schedulers.decision import State
from schedulers.events import Report
from schedulers.race_series import RaceSeries
from schedulers.tune.ray_compat import AUTO_RESULT_KEYS
from schedulers.tune.trials import can_be_resumed

logger = logging.getLogger(__name__)


@dataclass
class ResultReader:
    """Reads loss, samples and seconds from results and reports them to a race series."""

    metric: str | None  # the entry that is extrapolated; None until it is known
    mode: str | None  # min or max; None until it is known
    time_attr: str  # the entry with the samples seen
    seconds_attr: str  # the entry with the seconds of training
    throughput_attr: str  # the entry with the throughput that was measured alone; results may lack it
    learning_rate_attr: str  # results may lack it
    axis: str  # the unit of the budget: samples or seconds
    _warned: bool = False

    def samples(self, result: Mapping[str, Any]) -> float:
        """Returns the samples seen; nan if the result lacks them."""
        return _number(result.get(self.time_attr))

    def spent(self, result: Mapping[str, Any]) -> float:
        """Returns the part of the budget that the trial has spent; nan if the result lacks it."""
        return _number(result.get(self.time_attr if self.axis == "samples" else self.seconds_attr))

    def take(self, series: RaceSeries, key: Hashable, trial: Trial, result: Mapping[str, Any]) -> None:
        """Reports a result to the series; a result that is unusable fails the candidate.

        Raises:
            ValueError: No trial reports the metric, or the trial cannot be paused for another race.
        """
        if 0 < (throughput := _number(result.get(self.throughput_attr))) < math.inf:
            series.measure(key, throughput)
        if self.metric not in result:
            self._without_metric(series, key, result)
        elif problem := self._problem(result):
            logger.error(f"trial {key} {problem}")
            series.fail(key, problem)
        elif series.may_race_again and not can_be_resumed(trial, result):
            raise ValueError(
                f"rerace needs trials that can be paused: {trial.trainable_name} has reported without a checkpoint; "
                "report one with every result, or use rerace='never'"
            )
        else:
            loss = _number(result[self.metric or ""])
            loss = -loss if self.mode == "max" else loss
            seconds, rate = (_number(result.get(name)) for name in (self.seconds_attr, self.learning_rate_attr))
            series.report(key, self.samples(result), loss, seconds, rate)

    def is_missing(self, series: RaceSeries, result: Mapping[str, Any]) -> bool:
        """Returns whether neither this result nor any earlier one has the metric."""
        return self.metric not in result and not any(isinstance(event, Report) for event in series.events)

    def missing(self, result: Mapping[str, Any]) -> str:
        """Returns the error message if no trial reports the metric."""
        numbers = [name for name in _numbers(result) if name not in AUTO_RESULT_KEYS]
        near = difflib.get_close_matches(self.metric or "", numbers, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(numbers) or "no numbers"
        return (
            f"no trial has reported the metric {self.metric!r}; {hint}Reported were: {known}. "
            "Set metric to one of them, or report it"
        )

    def _without_metric(self, series: RaceSeries, key: Hashable, result: Mapping[str, Any]) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(f"trial {key} has reported without {self.metric!r}: such results are ignored")
        race = series.race
        spent, many = self.spent(result) - race.spent(key), race.min_reports
        late = result["training_iteration"] >= many and not spent < race.window / many
        if late and self.is_missing(series, result):
            raise ValueError(self.missing(result))
        if series.state(key) is State.RACING and spent >= race.window:
            series.fail(key, f"spent the window without reporting {self.metric!r}")

    def _problem(self, result: Mapping[str, Any]) -> str | None:
        """Returns why a result with the metric is unusable; None if it is usable."""
        needed = {"time_attr": self.time_attr}
        if self.axis == "seconds":
            needed["seconds_attr"] = self.seconds_attr
        for setting, name in needed.items():
            if name not in result:
                return f"does not report {name!r}: report it, or set {setting} to one of {', '.join(_numbers(result))}"
            if not math.isfinite(_number(result[name])):
                return f"reports {name!r} as {result[name]!r}: {setting} must name a number"
        return None


def _numbers(result: Mapping[str, Any]) -> list[str]:
    """Returns the entries with numbers, without the trial's id, whose hexadecimal digits may be decimal by chance."""
    return sorted(
        key for key in result if key != "trial_id" and not key.startswith("config/") and _is_number(result[key])
    )


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and math.isfinite(_number(value))


def _number(value: Any) -> float:
    """Returns nan for a value that is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
