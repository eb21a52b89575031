"""Terms of a race. Without torch, so that the process of a trial starts fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainables.settings.time_budget import TimeBudget


@dataclass(frozen=True)
class RaceTerms:
    """What the workers of a candidate need to know about the race.

    Args:
        coordinator: Actor handle of a ``TrialCoordinator``.
        window: Samples at which a candidate waits for the decision; 0: it trains alone.
        threads: Threads of a worker during the first race.
        in_place_threads: Threads of a worker of a winner that continues in place.
        winner_threads: Threads of a worker of a winner that is restarted.
        winner_workers: Workers that the winner could have.
        winner_memory: Whether the winner's workers could use more memory than those of the race.
        restart: Whether the winner always gets ``winner_workers``; False: only if that saves time.
        time: Budget in seconds; None: the settings have the samples.
        started: When this trial was started, in seconds since the epoch.
    """

    coordinator: Any
    window: int
    threads: int
    in_place_threads: int
    winner_threads: int
    winner_workers: int
    winner_memory: bool
    restart: bool
    time: TimeBudget | None = None
    started: float = 0.0
