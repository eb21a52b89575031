"""Only one process at a time writes to a run's directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptive_ray.errors import UserError

#: In the run's directory. It stays there: only the lock on it means anything.
LOCK_FILE = "lock"
#: What a file system answers that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def locked(run: Path) -> Iterator[str | None]:
    """Holds the lock on a run's directory; it ends with the process, however that dies.

    Over NFS, locks also hold between machines.

    Yields:
        None; where the file system has no locks, a warning, for then nothing keeps two processes apart.

    Raises:
        UserError: Another process holds it, or the directory cannot be written to.
    """
    file = run / LOCK_FILE
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None
    try:
        warning = None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run} is in use by {_holder(descriptor)}; wait until that run has ended, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise UserError(f"{file} cannot be locked: {error.strerror}") from None
            warning = f"{run} cannot be locked ({error.strerror}): make sure that nobody else resumes this run"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield warning
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # it has just taken the lock
        return "another process"
