"""Locks the directory of a run against other processes."""

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

#: File in the directory of a run. It is never removed; only the lock on it counts.
LOCK_FILE = "lock"
#: Errors of file systems without locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def locked(run: Path) -> Iterator[str | None]:
    """Holds the lock on the directory of a run. The system releases it when the process exits.

    Over NFS, the lock also holds between machines.

    Yields:
        None, or a warning if the file system does not support locks.

    Raises:
        UserError: Another process holds the lock, or the directory is not writable.
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
            raise UserError(f"{run} is in use by {_holder(descriptor)}; wait for it to finish or stop it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise UserError(f"{file} cannot be locked: {error.strerror}") from None
            warning = f"{run} cannot be locked ({error.strerror}): make sure that no other process resumes this run"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield warning
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # the other process has not written it yet
        return "another process"
