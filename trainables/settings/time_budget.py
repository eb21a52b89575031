"""A budget in seconds, and the samples that it comes to for each candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from schedulers.race import MIN_REPORTS
from trainables.settings.train import TrainSettings


@dataclass(frozen=True)
class TimeBudget:
    """A budget in seconds of training. Once a candidate's throughput is known, it is a number of samples.

    Args:
        budget: Seconds of the winner's training, its own part of the race included.
        window: Seconds of each candidate in the race; ``budget`` if a candidate trains alone.
        evaluations: Reports of each candidate in the window.
    """

    budget: float
    window: float
    evaluations: int

    def window_samples(self, settings: TrainSettings, throughput: float) -> int:
        """Returns the samples after which a candidate has spent the window: the last report in it.

        Args:
            settings: Settings of the candidate.
            throughput: Images per second.
        """
        return _until(self.window, throughput, self._evaluate_every(settings, throughput))

    def settings(
        self, settings: TrainSettings, throughput: float, origin: tuple[float, float] = (0.0, 0.0)
    ) -> TrainSettings:
        """Returns a candidate's settings with the samples that correspond to the budget.

        Args:
            settings: Settings of the candidate; its budget and the samples between its reports are replaced.
            throughput: Images per second.
            origin: Samples and seconds at which the candidate forked from another one, whose weights it starts with.

        Raises:
            ValueError: The window is too short for a race.
        """
        images = settings.candidate.images_per_update
        if self.window < self.budget and self.window * throughput < MIN_REPORTS * images:
            needed = MIN_REPORTS * images / throughput / 60
            raise ValueError(
                f"race.window = {self.window / 60:.3g} minutes allows {int(self.window * throughput / images)} updates "
                f"of batch size {settings.candidate.key} at {throughput:,.0f} images/s; the race needs at least "
                f"{MIN_REPORTS}, which take {needed:.2g} minutes: raise race.window and the budget"
            )
        every = self._evaluate_every(settings, throughput)
        total = _until(self.budget, throughput, images, origin)
        return type(settings)(**{**dict(settings), "budget": total, "evaluate_every": min(every, total)})

    def _evaluate_every(self, settings: TrainSettings, throughput: float) -> int:
        images = settings.candidate.images_per_update
        return max(math.ceil(self.window * throughput / self.evaluations / images), 1) * images


def _until(seconds: float, throughput: float, step: int, origin: tuple[float, float] = (0.0, 0.0)) -> int:
    """Returns the fewest samples that take at least ``seconds``, in steps from ``origin``. ``Race`` does the same."""
    first, spent = origin
    steps = max(int((seconds - spent) * throughput / step), 1)
    while spent + steps * step / throughput < seconds:
        steps += 1
    return int(first) + steps * step
