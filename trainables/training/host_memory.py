"""How much memory this machine, this container and this process have, and how much of it is free."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

#: Where a container's limit and use are written, and what of its use is cache that is given up on demand.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),  # version 2
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class MemoryTakenError(MemoryError):
    """Other processes hold what belongs to this run: the run would fit, and is not to blame."""


def total_memory() -> int:
    """Bytes of the machine, or of the container's limit where that is less; what is in use does not count."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *(limit for limit, _ in _containers())])


def free_memory() -> int:
    """Bytes left of the least of the machine's, the container's and the process's limits."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux: all that there is
        return total_memory()
    left = [int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1]) * 1024]  # type: ignore[index]
    left += [limit - used for limit, used in _containers()]
    return max(min(left), 0) if (own := address_space_left()) is None else max(min(*left, own), 0)


def address_space_left() -> int | None:
    """Bytes that this process may still map, by its own limit (``ulimit -v``); None without one."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit - _pages(0)


def resident_memory() -> int:
    """Bytes of memory that this process holds."""
    return _pages(1) if Path("/proc/self/statm").exists() else 0


def _pages(column: int) -> int:
    return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()


def _containers() -> list[tuple[int, int]]:
    """Limit and use of the container, where there is a limit."""
    found = []
    for folder, limit, used, cached in _CGROUPS:
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()).isdigit():
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found.append((int(text), int((folder / used).read_text()) - int(stat.get(cached, 0))))
    return found
