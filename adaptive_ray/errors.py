"""What can go wrong on a user's side. The command line turns each into one line and an exit code."""


class AdaptiveRayError(Exception):
    """Anything this package raises on purpose; exit code 1.

    ├── UserError           bad input, found before any work starts; exit code 2
    ├── NoSurvivorError     every candidate of a race failed
    ├── PlacementError      the cluster has no place for a run's workers
    └── InterruptedRunError the user stopped the run; exit code 130
    """

    exit_code = 1


class UserError(AdaptiveRayError):
    """Bad input: the value given, the rule, the way out."""

    exit_code = 2


class NoSurvivorError(AdaptiveRayError):
    """Every candidate failed; the message names each one's reason."""


class PlacementError(AdaptiveRayError):
    """The cluster has no place for a run's workers; the message names what they need and what is free."""


class InterruptedRunError(AdaptiveRayError):
    """The run was stopped from outside; the message tells how to go on."""

    exit_code = 130
