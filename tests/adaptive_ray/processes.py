"""Finds the descendants of a process; other Ray clusters may run on the same machine."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import ray  # noqa: F401  (psutil comes with it)

import psutil  # isort: skip


def descendants(pid: int) -> list[psutil.Process]:
    """The descendants of ``pid``."""
    return psutil.Process(pid).children(recursive=True)


def commands(processes: list[psutil.Process]) -> list[str]:
    found = []
    for process in processes:
        with suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


def ports(processes: list[psutil.Process]) -> set[int]:
    """The ports on which they listen."""
    found = set()
    for process in processes:
        with suppress(psutil.Error):
            found |= {each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    return found


def left_of(processes: list[psutil.Process], *, within: float) -> list[str]:
    """The command lines of processes that are still running after ``within`` seconds."""
    return commands(psutil.wait_procs(processes, timeout=within)[1])


def stacks(pid: int) -> str:
    """The stack of each thread of a process."""
    command = [Path(sys.executable).parent / "py-spy", "dump", "--pid", str(pid)]  # comes with Ray
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def of_run(driver: int, title: str) -> list[int]:
    """IDs of the descendants of ``driver`` whose title contains ``title``."""
    return [process.pid for process in descendants(driver) if any(title in text for text in commands([process]))]


def kill(driver: int, title: str, *, within: float = 60) -> int:
    """Kills one of them with SIGKILL; returns its ID."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        for pid in of_run(driver, title):
            psutil.Process(pid).kill()
            return pid
        time.sleep(0.1)
    raise TimeoutError(f"no process of {driver} is called {title}")
