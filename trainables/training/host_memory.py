"""Reads the total and the free memory of the machine, the container and this process."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

#: Cgroup directory, its files for the limit and the usage, and the statistic of reclaimable cache within the usage.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),  # version 2
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class MemoryTakenError(MemoryError):
    """Raised if the run would fit into its memory, but other processes use it."""


def total_memory() -> int:
    """Returns the bytes of the machine's memory or of the container's limit, whichever is less, used or not."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *(limit for limit, _ in _containers())])


def free_memory() -> int:
    """Returns the free bytes within the limits of the machine, the container and the process."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux
        return total_memory()
    left = [int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1]) * 1024]  # type: ignore[index]
    left += [limit - used for limit, used in _containers()]
    return max(min(left), 0) if (own := address_space_left()) is None else max(min(*left, own), 0)


def address_space_left() -> int | None:
    """Returns the bytes that this process may still map (``ulimit -v``), or None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit - _pages(0)


def resident_memory() -> int:
    """Returns the resident memory of this process in bytes."""
    return _pages(1) if Path("/proc/self/statm").exists() else 0


def _pages(column: int) -> int:
    return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()


def _containers() -> list[tuple[int, int]]:
    """Returns (limit, usage) in bytes of each cgroup that has a limit."""
    found = []
    for folder, limit, used, cached in _CGROUPS:
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()).isdigit():
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found.append((int(text), int((folder / used).read_text()) - int(stat.get(cached, 0))))
    return found
