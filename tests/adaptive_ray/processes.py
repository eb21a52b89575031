"""The processes that a run has started, to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time


def of_run(driver: int, title: str) -> list[int]:
    """Ids of the processes that ``driver`` has started, itself or through others, and whose title holds ``title``."""
    lines = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    table = [line.split(None, 2) for line in lines[1:]]
    family = {driver}
    while True:
        grown = family | {int(pid) for pid, parent, _ in table if int(parent) in family}
        if grown == family:
            return [int(pid) for pid, _, args in table if int(pid) in family and title in args]
        family = grown


def kill(driver: int, title: str, *, within: float = 60) -> int:
    """Kills one of them as a machine that is short of memory does; returns its id."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        for pid in of_run(driver, title):
            os.kill(pid, signal.SIGKILL)
            return pid
        time.sleep(0.1)
    raise TimeoutError(f"no process of {driver} is called {title}")
