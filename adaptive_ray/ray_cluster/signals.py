"""Turns SIGINT, SIGTERM and SIGHUP into one KeyboardInterrupt.

Further signals are ignored while a run shuts down, since an interrupted shutdown leaves processes behind. After 30
seconds they interrupt again, in case the shutdown hangs.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds after which a signal also interrupts a protected block or a shutdown.
TIMEOUT = 30.0


@dataclass
class _State:
    received: int | None = None  # the first signal
    at: float = 0.0  # time of the first signal
    held_back: int = 0  # number of protected blocks
    ending: bool = False  # KeyboardInterrupt was raised


_state = _State()


def listen() -> None:
    """Installs the signal handlers for the rest of the process, if called from the main thread."""
    global _state  # noqa: PLW0603 - a process has one set of signal handlers
    _state = _State()
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # Keep an ignored SIGHUP (`nohup`). Handle SIGINT even if ignored, as in background jobs of a shell.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)


@contextmanager
def listening() -> Iterator[None]:
    """Installs the signal handlers for the block, unless they are installed."""
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
    """Reinstalls the handlers after a block in which a library replaces them outside Python."""
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is _interrupt:
                    signal.signal(number, _interrupt)


@contextmanager
def held_back() -> Iterator[None]:
    """Defers an interruption until the block exits."""
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
    """Ignores further signals after the block was interrupted, so that the caller can shut down."""
    try:
        yield
    except KeyboardInterrupt:
        _state.ending = True
        raise


def ignore() -> None:
    """Ignores the signals for the rest of the process; Python removes its handlers while it exits."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_code() -> int:
    """Exit code of an interrupted process: 128 + signal number (130: SIGINT, 143: SIGTERM)."""
    return 128 + (_state.received or signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _state.received is None:
        _state.received, _state.at = number, time.monotonic()
    waits = _state.ending or _state.held_back
    if not waits or time.monotonic() - _state.at > TIMEOUT:
        raise KeyboardInterrupt
