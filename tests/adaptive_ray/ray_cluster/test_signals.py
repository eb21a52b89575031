"""Handling of signals in this process."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

import pytest

from adaptive_ray.ray_cluster import signals as interruption
from adaptive_ray.ray_cluster.signals import ended_once, held_back, listening

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup pytest` ignores it, and so would the program
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_an_interruption_with_its_own_exit_code(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), listening():
        signal.raise_signal(number)
    assert interruption.exit_code() == 128 + number


def test_previous_handlers_are_restored() -> None:
    def mine(*_: object) -> None:
        raise RuntimeError

    signal.signal(signal.SIGTERM, mine)
    with listening():
        assert signal.getsignal(signal.SIGTERM) is not mine
    assert signal.getsignal(signal.SIGTERM) is mine


def test_a_second_signal_is_ignored_during_shutdown() -> None:
    ended = []

    def end() -> None:
        for number in SIGNALS:
            signal.raise_signal(number)
        ended.append(True)

    def work() -> None:
        try:
            with ended_once():
                signal.raise_signal(signal.SIGTERM)
        finally:
            end()

    interruption.listen()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert ended == [True]
    assert interruption.exit_code() == 143  # the first


def test_an_unhandled_signal_can_be_repeated() -> None:
    """For example in a callback whose errors are suppressed."""
    interruption.listen()
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_protected_block_finishes_first() -> None:
    interruption.listen()
    done = []

    def work() -> None:
        with held_back():
            with held_back():
                signal.raise_signal(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]
    signal.raise_signal(signal.SIGINT)  # it is being ended


def test_a_hanging_block_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    interruption.listen()
    monkeypatch.setattr(interruption, "TIMEOUT", 0.05)
    done = []

    def hang() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("held back")
            time.sleep(0.1)
            signal.raise_signal(signal.SIGINT)
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        hang()
    assert done == ["held back"]


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with listening():
        signal.raise_signal(signal.SIGHUP)
