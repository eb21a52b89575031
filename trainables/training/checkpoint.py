"""Saves and loads checkpoints and detects corrupt ones."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # trials and controllers import this module's errors without torch
    import torch

#: Name of the file in a checkpoint directory.
CHECKPOINT_FILE = "checkpoint.pt"
#: Prefix of directories in which a checkpoint is being written; they are renamed when the checkpoint is reported.
UNFINISHED = "saving-"


class CheckpointError(OSError):
    """Raised if a checkpoint is missing or corrupt. The message names the file."""


def save_checkpoint(state: Mapping[str, Any], directory: Path) -> None:
    """Writes ``state`` (tensors, numbers, text and containers of them) into an existing directory."""
    import torch

    try:
        with (directory / CHECKPOINT_FILE).open("wb") as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch reports it as "unexpected pos"
            raise error.__context__ from None
        raise


@contextmanager
def new_directory(parent: Path | None) -> Iterator[Path]:
    """Yields a new directory in ``parent`` (None: the system's temporary directory); removes it unless it was moved."""
    if parent is None:
        path = Path(tempfile.mkdtemp())
    else:
        path = parent / f"{UNFINISHED}{uuid.uuid4().hex}"
        path.mkdir()  # with the permissions of its parent, unlike tempfile's directories
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(directory: Path, device: torch.device) -> dict[str, Any]:
    """Returns what ``save_checkpoint`` wrote, with tensors on ``device``.

    Raises:
        CheckpointError: The file is missing or corrupt.
    """
    import torch

    try:
        state: dict[str, Any] = torch.load(directory / CHECKPOINT_FILE, map_location=device, weights_only=True)
    except Exception:  # torch raises the same types for a corrupt file and for exhausted GPU memory
        if problem := checkpoint_problem(directory):
            raise CheckpointError(problem) from None
        raise
    return state


def checkpoint_problem(directory: Path) -> str | None:
    """Returns what is wrong with a checkpoint's file, or None if it is complete.

    Reads the whole file and compares the checksums that torch writes for every tensor.
    """
    file = directory / CHECKPOINT_FILE
    try:
        with zipfile.ZipFile(file) as archive:
            entry = archive.testzip()
    except FileNotFoundError:
        return f"{file} does not exist"
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        return f"{file} is corrupt: {error}"
    return None if entry is None else f"{file} is corrupt: the checksum of {entry} does not match"
