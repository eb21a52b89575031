"""What can go wrong on a user's side. The command line turns each into one line and an exit code."""


class AdaptiveRayError(Exception):
    """Anything this package raises on purpose; exit code 1.

    ├── UserError           bad input, found before any work starts; exit code 2
    ├── NoSurvivorError     every candidate of a race failed
    ├── WinnerFailedError   a candidate has won, and failed after the race
    ├── PlacementError      the cluster has no place for a run's workers
    ├── StorageError        the disk is full, a folder cannot be written to, or the output is gone
    └── InterruptedRunError the run was stopped: Ctrl-C, or a signal; exit code 128 + the signal's number
    """

    exit_code = 1


class UserError(AdaptiveRayError):
    """Bad input: the value given, the rule, the way out."""

    exit_code = 2


class NoSurvivorError(AdaptiveRayError):
    """Every candidate failed; the message names each one's reason."""


class WinnerFailedError(AdaptiveRayError):
    """The winner failed after the race; the message says why, and how to retry it."""


class PlacementError(AdaptiveRayError):
    """The cluster has no place for a run's workers; the message names what they need and what is free."""


class StorageError(AdaptiveRayError):
    """Something cannot be written; the message names it, and how to continue."""


class InterruptedRunError(AdaptiveRayError):
    """The run was stopped from outside; the message tells how to continue it.

    Args:
        message: For a person.
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
