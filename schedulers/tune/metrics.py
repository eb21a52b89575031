"""Which entries of a trial's results count."""

from __future__ import annotations

import difflib
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Reading:
    """Reads a result: a flat dictionary of whatever a trainable has reported.

    Args:
        metric: What is extrapolated; None until it is known.
        mode: ``min`` or ``max``; None until it is known.
        time_attr: Samples seen.
        seconds_attr: Seconds of training.
        axis: Which of the two the budget is in: ``samples`` or ``seconds``.
    """

    metric: str | None
    mode: str | None
    time_attr: str
    seconds_attr: str
    axis: str

    def loss(self, value: Any) -> float:
        """The metric's value as what is to fall; nan for what is no number."""
        loss = _number(value)
        return -loss if self.mode == "max" else loss

    def report(self, result: Mapping[str, Any]) -> tuple[float, float, float]:
        """Samples, loss and seconds; nan where there is none."""
        return self.samples(result), self.loss(result[self.metric or ""]), self._seconds(result)

    def samples(self, result: Mapping[str, Any]) -> float:
        """Samples seen; nan if the result does not say."""
        return _number(result.get(self.time_attr))

    def spent(self, result: Mapping[str, Any]) -> float:
        """How far the trial has come, in units of the budget; nan if the result does not say."""
        return self.samples(result) if self.axis == "samples" else self._seconds(result)

    def complaint(self, result: Mapping[str, Any]) -> str | None:
        """What is wrong with a result that has the metric; None: nothing."""
        needed = {"time_attr": self.time_attr} | ({"seconds_attr": self.seconds_attr} if self.axis == "seconds" else {})
        for setting, name in needed.items():
            if name not in result:
                numbers = ", ".join(_numbers(result))
                return f"does not report {name!r}: report it, or set {setting} to one of {numbers}"
            if not math.isfinite(_number(result[name])):
                return f"reports {name!r} as {result[name]!r}: {setting} must name a number"
        return None

    def missing(self, result: Mapping[str, Any], filled: Container[str]) -> str:
        """What to do where no result has the metric; ``filled`` are entries that are not the trainable's own."""
        numbers = [name for name in _numbers(result) if name not in filled]
        near = difflib.get_close_matches(self.metric or "", numbers, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(numbers) or "no numbers"
        return (
            f"no trial has reported the metric {self.metric!r}; {hint}Reported were: {known}. "
            "Set metric to one of them, or report it"
        )

    def _seconds(self, result: Mapping[str, Any]) -> float:
        return _number(result.get(self.seconds_attr))


def _numbers(result: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in result if not key.startswith("config/") and _is_number(result[key]))


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and math.isfinite(_number(value))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
