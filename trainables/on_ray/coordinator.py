"""Decides which trial of a race may use a device alone, and when the race ends. Runs as a Ray actor of the driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

#: Seconds after which a trial that no longer asks, or that has not ended its turn, is not waited for.
_ASKS_AGAIN, _TURN = 10.0, 300.0
#: Seconds that a trial waits for others that have not had their turn, before it trains.
_START = 60.0


@dataclass(frozen=True)
class Measurement:
    """A candidate's throughput with its device to itself.

    Args:
        throughput: Images per second with the workers that the winner would have.
        in_place: Whether the winner would continue with its present workers, because others would save too little.
    """

    throughput: float
    in_place: bool


@dataclass(frozen=True)
class Start:
    """What a candidate needs to know when its workers start.

    Args:
        measurement: Its measurement; None: it has not been measured.
        again: Whether this is a further race, or the training after it. Candidates do not wait in place there.
        origin: Samples, and budget spent, at which it last forked from another candidate; zeros if it never did.
    """

    measurement: Measurement | None
    again: bool = False
    origin: tuple[float, float] = (0.0, 0.0)


class _State(StrEnum):
    QUEUED = "queued"  # asks for a turn
    MEASURING = "measuring"
    READY = "ready"  # asks whether it may train
    TRAINING = "training"


@dataclass
class _Trial:
    devices: frozenset[str]
    state: _State
    since: float  # when it entered this state
    asked: float


class TrialCoordinator:
    """Gives trials that share a device exclusive turns, in which they measure their throughput.

    A trial asks for a turn before its training, and between two reports whether it may continue: not while another
    trial on one of its devices has a turn or waits for one. No method blocks; trials ask until the answer is empty.

    Args:
        expected: Trials that start together. The turns begin when all of them have asked, within a minute.
        measured: Throughputs that are known from an earlier session.
        over: Whether the race has been decided.
        origins: Those of a further race; see ``race_again``.
        clock: Returns seconds.
    """

    def __init__(
        self,
        expected: int,
        measured: Mapping[str, Measurement] | None = None,
        *,
        over: bool = False,
        origins: Mapping[str, tuple[float, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._expected, self._over, self._clock = expected, over, clock
        self._measured = dict(measured or {})
        self._origins = origins
        self._started = False  # whether a trial has trained
        self._first: set[str] = set()  # trials that have had their turn in this session
        self._trials: dict[str, _Trial] = {}

    def start(self, trial: str) -> Start:
        """Returns what a trial needs to know when it starts."""
        measurement = self._measured.get(trial)
        if self._origins is None:
            return Start(measurement)
        return Start(measurement, again=True, origin=self._origins.get(trial, (0.0, 0.0)))

    def race_again(self, origins: Mapping[str, tuple[float, float]]) -> None:
        """Announces a further race, before its candidates start: ``Start.origin`` of each of them."""
        self._over, self._origins = True, origins

    def request_turn(self, trial: str, devices: Iterable[str]) -> list[str]:
        """Asks for exclusive use of devices. Returns the trials to wait for; if there is none, the turn has begun."""
        self._ask(trial, devices, _State.QUEUED)
        waiting = [
            key
            for key, other in self._others(trial)
            if other.state in (_State.MEASURING, _State.TRAINING)
            or (other.state is _State.QUEUED and other.since < self._trials[trial].since)
        ]
        waiting += self._missing(trial)  # processes that start use the cores, too
        if not waiting:
            self._enter(trial, _State.MEASURING)
        return waiting

    def end_turn(self, trial: str, measurement: Measurement) -> None:
        """Ends a turn and stores its result."""
        self._measured[trial] = measurement
        self._first.add(trial)
        self._enter(trial, _State.READY)

    def request_training(self, trial: str, devices: Iterable[str]) -> list[str]:
        """Asks whether a trial may train. Returns what it waits for; if there is nothing, it trains from now on."""
        self._ask(trial, devices, _State.READY)
        waiting = [key for key, other in self._others(trial) if other.state in (_State.QUEUED, _State.MEASURING)]
        if not waiting:
            self._started = True
            self._enter(trial, _State.TRAINING)
        return waiting

    def leave(self, trial: str, *, for_good: bool) -> None:
        """Removes a trial that no longer runs.

        Args:
            trial: The trial.
            for_good: Whether it will not run again; it is then not expected either.
        """
        self._trials.pop(trial, None)
        if for_good and trial not in self._first:
            self._first.add(trial)

    def end_race(self) -> None:
        """Lets trials train that wait at the end of the window."""
        self._over = True

    def is_over(self) -> bool:
        """Returns whether the race has been decided."""
        return self._over

    def _missing(self, trial: str) -> list[str]:
        """Returns a description of the trials that are expected but have not asked yet; none after a minute."""
        missing = self._expected - len(self._first | self._trials.keys())
        waits = missing > 0 and not self._started and self._clock() - self._trials[trial].since < _START
        return [f"{missing} that are starting"] if waits else []

    def _others(self, trial: str) -> list[tuple[str, _Trial]]:
        """Returns the other trials on the devices of a trial, without those that have stopped asking."""
        now, devices = self._clock(), self._trials[trial].devices
        return [
            (key, other)
            for key, other in self._trials.items()
            if key != trial
            and other.devices & devices
            and not (other.state is _State.QUEUED and now - other.asked > _ASKS_AGAIN)
            and not (other.state is _State.MEASURING and now - other.since > _TURN)
        ]

    def _ask(self, trial: str, devices: Iterable[str], state: _State) -> None:
        known = self._trials.get(trial)
        if known is None or known.state is not state:
            self._trials[trial] = known = _Trial(frozenset(devices), state, self._clock(), 0.0)
        known.asked = self._clock()

    def _enter(self, trial: str, state: _State) -> None:
        if (known := self._trials.get(trial)) is not None:
            known.state, known.since = state, self._clock()
