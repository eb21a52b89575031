"""The private directory of Ray: location, removal and cleanup."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.private_directory import _LOCK, _LONGEST, private_directory


@pytest.fixture
def base(ray_files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's ``RAY_TMPDIR``, empty before and after."""
    path = ray_files / "own"
    path.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(path))
    yield path
    shutil.rmtree(path)


def holder(base: Path) -> subprocess.Popen[str]:
    """Another process with a private directory, until its stdin is closed."""
    code = (
        "from adaptive_ray.ray_cluster.private_directory import private_directory\n"
        "with private_directory() as path: print(path, flush=True); input()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RAY_TMPDIR": str(base)},
    )  # fmt: skip


def test_it_is_in_the_users_directory_and_is_removed(base: Path) -> None:
    with private_directory() as path:
        assert path.parent == base
        assert os.environ["RAY_TMPDIR"] == str(path)
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "ray" / "session").mkdir(parents=True)
    assert os.environ["RAY_TMPDIR"] == str(base)
    assert list(base.iterdir()) == []


def test_concurrent_runs_have_separate_directories(base: Path) -> None:
    with private_directory() as first:
        other = holder(base)
        assert other.stdout is not None
        second = Path(other.stdout.readline().strip())
        assert second.parent == base
        assert second != first
        assert first.is_dir()
        other.communicate("\n")
        assert other.returncode == 0
        assert list(base.iterdir()) == [first]


def test_directories_of_killed_runs_are_removed(base: Path) -> None:
    killed = holder(base)
    assert killed.stdout is not None
    left = Path(killed.stdout.readline().strip())
    (left / "ray" / "session").mkdir(parents=True)
    foreign = base / "ar-someones"  # looks like ours and is not
    foreign.mkdir()
    with private_directory():
        assert left.is_dir()  # its run lives
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with private_directory():
        assert not left.exists()
    assert list(base.iterdir()) == [foreign]


def test_directories_of_other_users_are_kept(base: Path) -> None:
    left = base / "ar-12345678"
    left.mkdir()
    (left / _LOCK).touch()
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to somebody else")
    os.chown(left / _LOCK, 65534, 65534)
    with private_directory():
        pass
    assert left.is_dir()


def test_without_one_the_directory_of_temporary_files_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with private_directory() as path:
        assert len(os.fsencode(path.parent)) <= _LONGEST
        assert os.environ["RAY_TMPDIR"] == str(path)
    assert "RAY_TMPDIR" not in os.environ
    assert not path.exists()


def test_a_long_directory_for_temporary_files_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 10)))
    with private_directory() as path:
        assert path.parent == Path("/tmp")


@pytest.mark.parametrize("place", ["long" * 10, "file"])
def test_an_unusable_directory_is_reported(base: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (base / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(base / place))
    with pytest.raises(UserError, match=r"RAY_TMPDIR") as caught, private_directory():
        pass
    assert "\n" not in str(caught.value)
    assert str(base / place) in str(caught.value)
