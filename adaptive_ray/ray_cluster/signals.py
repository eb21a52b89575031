"""The signals that stop a program: Ctrl-C, a stopped job, a closed terminal. Each is a KeyboardInterrupt, once.

While a stopped run is being ended, further signals change nothing: it takes seconds, and what is ended halfway leaves
processes behind. Where something hangs, they interrupt again after half a minute.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Seconds after which a signal interrupts also what must not be interrupted: it hangs.
PATIENCE = 30.0


@dataclass
class _State:
    received: int | None = None  # the first signal
    at: float = 0.0  # when it came
    held_back: int = 0  # blocks that must not be interrupted
    ending: bool = False  # the interruption has been noticed


_state = _State()


def listen() -> None:
    """Takes the signals over for the rest of the process. They can only be taken over in the main thread."""
    global _state  # noqa: PLW0603 - a process has one set of signal handlers
    _state = _State()
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # `nohup` asks to ignore that the terminal is closed. What a shell starts in the background ignores Ctrl-C,
            # but must react to a SIGINT that somebody sends to it.
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)


@contextmanager
def listening() -> Iterator[None]:
    """Takes the signals over for the block, unless they are already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _interrupt:
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def taken_over_again() -> Iterator[None]:
    """For a block in which a library replaces the handlers behind Python's back."""
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is _interrupt:
                    signal.signal(number, _interrupt)


@contextmanager
def held_back() -> Iterator[None]:
    """Interrupts after the block, not within it."""
    _state.held_back += 1
    try:
        yield
    finally:
        _state.held_back -= 1
    if _state.received is not None and not _state.ending and not _state.held_back:
        _state.ending = True
        raise KeyboardInterrupt


@contextmanager
def ended_once() -> Iterator[None]:
    """Ignores further signals once the block was interrupted, so that what encloses it can end in order."""
    try:
        yield
    except KeyboardInterrupt:
        _state.ending = True
        raise


def ignore() -> None:
    """Ignores the signals for the rest of the process: Python gives its handlers up while it exits."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_code() -> int:
    """What a shell calls a process that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_state.received or signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _state.received is None:
        _state.received, _state.at = number, time.monotonic()
    waits = _state.ending or _state.held_back
    if not waits or time.monotonic() - _state.at > PATIENCE:
        raise KeyboardInterrupt
