"""Atomic writes on a full disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from adaptive_ray.config.loading import load_config
from adaptive_ray.encoders import save_encoder
from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.atomic_write import replaced, write_whole
from adaptive_ray.run_directory.directory import RunDirectory
from tests.disks import disk, fill
from trainables.settings import EncoderSettings
from trainables.simclr import build_encoder

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


def test_a_full_disk_keeps_the_old_content(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "256k") as place:
        file = place / "result.json"
        write_whole(file, "what was there")
        filler = fill(place)
        with pytest.raises(OSError, match="No space left on device"):
            write_whole(file, "x" * 100_000)
        assert file.read_text() == "what was there"
        assert sorted(place.iterdir()) == [filler, file]
        with pytest.raises(OSError, match="No space left on device"):
            save_encoder(build_encoder(EncoderSettings(width=8, depth=1), 1), place, image_size=28, provenance={})

        config = load_config(QUICKSTART, [f"runs_dir={place}"])
        with pytest.raises(UserError, match="No space left on device") as caught:
            RunDirectory.create(config, "run")
        assert str(place / "run") in str(caught.value)
        assert not (place / "run").exists()


def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "256k") as place:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        config = load_config(QUICKSTART, [f"runs_dir={place}"])
        with pytest.raises(UserError, match="Read-only file system"):
            RunDirectory.create(config, "run")


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    def fail(file: Path) -> None:
        with replaced(file) as new:
            new.write_text("half of")
            raise ValueError("stopped")

    (tmp_path / "file").write_text("before")
    with pytest.raises(ValueError, match="stopped"):
        fail(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "folder", "content")
    assert caught.value.filename == str(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    write_whole(tmp_path / "file", "· after")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "· after"
