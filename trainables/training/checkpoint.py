"""A checkpoint: one file in a directory, which is either whole or recognised as damaged."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # trials and controllers get its errors, and need no torch
    import torch

#: The file in a checkpoint's directory.
CHECKPOINT_FILE = "checkpoint.pt"
#: How directories begin in which a checkpoint is being written; whoever reports it gives it its name.
UNFINISHED = "saving-"


class CheckpointError(OSError):
    """A checkpoint is missing or damaged: a fault of the storage, not of what was trained. Names the file."""


def save_checkpoint(state: Mapping[str, Any], directory: Path) -> None:
    """Writes ``state`` (tensors, numbers, text and containers of them) into an existing directory.

    Raises:
        OSError: It cannot be written: the disk is full, say.
    """
    import torch

    try:
        with (directory / CHECKPOINT_FILE).open("wb") as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch hides it behind "unexpected pos"
            raise error.__context__ from None
        raise


@contextmanager
def new_directory(parent: Path | None) -> Iterator[Path]:
    """A directory for a checkpoint, removed at the end unless it has been moved; in None: among temporary files."""
    if parent is None:
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)
        return
    path = parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    path.mkdir()  # whoever may read its parent may read it
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(directory: Path, device: torch.device) -> dict[str, Any]:
    """Reads what ``save_checkpoint`` wrote; tensors come to ``device``.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    import torch

    try:
        state: dict[str, Any] = torch.load(directory / CHECKPOINT_FILE, map_location=device, weights_only=True)
    except Exception:  # what torch raises for a damaged file it also raises when a GPU's memory is full
        if damage := checkpoint_damage(directory):
            raise CheckpointError(damage) from None
        raise
    return state


def checkpoint_damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint's file, in words; None: it is whole.

    Reads all of it: torch writes a checksum of every tensor, and its end holds the list of what it must contain.
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
        return f"{file} is damaged: {error}"
    return None if entry is None else f"{file} is damaged: the checksum of {entry} does not match"
