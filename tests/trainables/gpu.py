"""What tests on a GPU have in common."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, an operation for which the host waits until the device is done is an error."""
    with warnings.catch_warnings(action="ignore"):  # the mode is a prototype, it says
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
