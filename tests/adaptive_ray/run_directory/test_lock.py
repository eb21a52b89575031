"""The lock on the directory of a run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.lock import LOCK_FILE, locked

#: Holds the lock and has a child process until it is asked to exit.
HOLDER = """
import subprocess, sys
from pathlib import Path
from adaptive_ray.run_directory.lock import locked
with locked(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    sys.stdin.read()
child.kill()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock, and its child."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_the_second_process_sees_the_holder(tmp_path: Path, holder: tuple[subprocess.Popen[str], int]) -> None:
    process, _ = holder
    with pytest.raises(UserError) as caught, locked(tmp_path):
        pytest.fail("two hold it")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()};")
    assert "\n" not in message
    process.communicate()
    with locked(tmp_path):
        pass


def test_it_ends_with_its_process_even_if_children_survive(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], int]
) -> None:
    process, child = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(child, 0)  # it is still running
    with locked(tmp_path) as warning:
        assert warning is None


def test_one_after_the_other_and_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), locked(tmp_path):
            raise RuntimeError
    with locked(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"), locked(tmp_path):
        pass


def test_a_copy_has_its_own_lock(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with locked(one):
        (other / LOCK_FILE).write_bytes((one / LOCK_FILE).read_bytes())
        with locked(other):
            pass


@pytest.mark.parametrize("content", ["", "no JSON", "[1]"])
def test_a_lock_without_holder(tmp_path: Path, content: str) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_text(content)
        with pytest.raises(UserError, match="is in use by another process"), locked(tmp_path):
            pass


def test_a_file_system_without_locks_gives_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path) as warning:
        assert warning is not None
        assert str(tmp_path) in warning
        assert "No locks available" in warning


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file"), locked(tmp_path / "gone"):
        pass
