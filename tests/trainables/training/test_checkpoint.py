"""Tests that corrupt checkpoints are detected, wherever they were truncated or overwritten."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from tests.disks import disk
from trainables.training.checkpoint import (
    CHECKPOINT_FILE,
    CheckpointError,
    checkpoint_problem,
    load_checkpoint,
    new_directory,
    save_checkpoint,
)

CPU = torch.device("cpu")
WEIGHTS = {f"layer{n}": torch.arange(900.0) * n for n in range(3)}
STATE = {"model": WEIGHTS, "samples": 7, "text": "x" * 50, "none": None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_checkpoint(STATE, tmp_path)
    return tmp_path / CHECKPOINT_FILE


def test_a_checkpoint_round_trips(file: Path) -> None:
    assert checkpoint_problem(file.parent) is None
    state = load_checkpoint(file.parent, CPU)
    assert {name: state[name] for name in ("samples", "text", "none")} == {"samples": 7, "text": "x" * 50, "none": None}
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in WEIGHTS.items())


def test_truncation_at_any_byte_is_detected(file: Path) -> None:
    whole = file.read_bytes()
    for length in {*range(64), *range(64, len(whole), 211), *range(len(whole) - 200, len(whole))}:
        os.truncate(file, length)
        problem = checkpoint_problem(file.parent)
        assert problem is not None, length
        assert str(file) in problem
        file.write_bytes(whole)
    assert checkpoint_problem(file.parent) is None


def test_missing_blocks_are_detected(file: Path) -> None:
    """After a power failure a file may have its full length, and zeros where data belongs."""
    whole = file.read_bytes()
    for start in random.Random(0).sample(range(len(whole) - 512), 200):
        file.write_bytes(whole[:start] + bytes(512) + whole[start + 512 :])
        if checkpoint_problem(file.parent) is None:  # the block was zero before
            state = load_checkpoint(file.parent, CPU)
            assert all(torch.equal(state["model"][name], tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", bytes(10_000)])
def test_a_file_that_is_not_a_checkpoint_is_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is corrupt") as caught:
        load_checkpoint(file.parent, CPU)
    assert str(file) in str(caught.value)


def test_missing_files_and_directories_are_named(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="does not exist") as caught:
            load_checkpoint(directory, CPU)
        assert str(directory / CHECKPOINT_FILE) in str(caught.value)
    (tmp_path / CHECKPOINT_FILE).mkdir()
    with pytest.raises(CheckpointError, match="Is a directory"):
        load_checkpoint(tmp_path, CPU)


def test_other_errors_are_raised_unchanged(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exhausted memory is not a corrupt checkpoint."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_checkpoint(file.parent, CPU)


def test_a_full_disk_raises_its_oserror(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "256k") as place, pytest.raises(OSError, match="No space left on device"):
        save_checkpoint({"model": torch.zeros(100_000)}, place)


def test_a_new_directory_is_removed_unless_it_was_moved(tmp_path: Path) -> None:
    for parent in (None, tmp_path):
        with new_directory(parent) as directory:
            save_checkpoint(STATE, directory)
            assert parent is None or directory.parent == parent
        assert not directory.exists()
        with new_directory(parent) as directory:
            save_checkpoint(STATE, directory)
            directory.rename(tmp_path / f"moved from {parent is None}")
    moved = sorted(tmp_path.iterdir())
    assert [checkpoint_problem(path) for path in moved] == [None, None]
    with pytest.raises(RuntimeError), new_directory(tmp_path):
        raise RuntimeError
    assert sorted(tmp_path.iterdir()) == moved


def test_a_new_directory_has_the_permissions_of_its_parent(tmp_path: Path) -> None:
    with new_directory(tmp_path) as directory:
        (other := tmp_path / "other").mkdir()
        assert directory.stat().st_mode == other.stat().st_mode
