"""Exceptions raised by adaptive_ray. The command line prints each as one line and exits with its code."""

from __future__ import annotations

import errno
import os

#: Errors of disks, directories or output streams.
_STORAGE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EPIPE, errno.EMFILE, errno.ENFILE,
}  # fmt: skip


class AdaptiveRayError(Exception):
    """Base class of all exceptions of this package."""

    exit_code = 1


class UserError(AdaptiveRayError):
    """Invalid input. The message holds the value given, the rule and how to fix it."""

    exit_code = 2


class FinishedRunError(UserError):
    """The run to resume is already finished."""


class NoSurvivorError(AdaptiveRayError):
    """Every candidate failed. The message holds the reason of each."""


class WinnerFailedError(AdaptiveRayError):
    """The winner failed after the race. The message holds the reason and how to retry."""


class PlacementError(AdaptiveRayError):
    """The cluster cannot place the workers. The message holds the resources requested and available."""


class StorageError(AdaptiveRayError):
    """A file cannot be written. The message holds its path and how to resume."""


class InterruptedRunError(AdaptiveRayError):
    """The run was interrupted. The message holds the command that resumes it; the exit code is 128 + the signal's."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the error's type if it is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def storage_problem(error: BaseException) -> str | None:
    """Describes the error of a disk, directory or output stream that caused ``error``; None if there is none.

    Follows the chain of causes, since Ray wraps errors of callbacks.
    """
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in _STORAGE):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OSError):
        return None
    if isinstance(cause, BrokenPipeError):
        return "the output was closed by the reader"
    place = cause.filename if isinstance(cause.filename, str) else "a file or the output cannot be written"
    return f"{place}: {os.strerror(cause.errno or 0)}"  # str(error) may be the message of a library
