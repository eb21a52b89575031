"""Imports find this project's packages in a directory with others of the same names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from adaptive_ray.ray_cluster.own_packages import ROOT, imports_from

SHOW = "import schedulers.race, trainables; print(schedulers.race.__file__, trainables.__file__)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's, from which `python` imports first."""
    for name in ("schedulers", "trainables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')\n")
    return tmp_path


def shown(folder: Path, code: str, *path: Path) -> list[Path]:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(map(str, path)), "PATH": ""},
    )  # fmt: skip
    return [Path(name) for name in done.stdout.split()]


def of(root: Path) -> list[Path]:
    return [root / "schedulers" / "race.py", root / "trainables" / "__init__.py"]


def test_after_an_import_of_ours(folder: Path) -> None:
    assert shown(folder, f"import adaptive_ray; {SHOW}", ROOT) == of(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["the driver's folder", "a node without the driver's folder"])
def test_a_worker_with_the_setup_hook(folder: Path, tmp_path: Path, known: bool) -> None:
    copy = tmp_path / "copy"
    for name in ("adaptive_ray", "schedulers", "trainables"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "install.pkl").write_bytes(cloudpickle.dumps(imports_from(copy if known else tmp_path / "gone")))
    code = f"from ray import cloudpickle; cloudpickle.loads(open('install.pkl', 'rb').read())(); {SHOW}"
    assert shown(folder, code, ROOT) == of(copy if known else ROOT)
