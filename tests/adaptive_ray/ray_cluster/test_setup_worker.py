"""The script that starts workers of a local cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adaptive_ray.ray_cluster import setup_worker

SHOW = "import os, sys; print(*(os.environ.get(name) for name in ('ONE', 'PATH_OF_TWO', 'NONE')), *sys.argv[1:])"


def started(worker: Path, context: dict[str, object], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the script as a raylet does."""
    command = [sys.executable, setup_worker.__file__, str(worker), *arguments, "--language=PYTHON"]
    command += [f"--serialized-runtime-env-context={json.dumps(context)}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"HOME": "/home", "PATH": "/bin"})


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(SHOW)
    return path


def test_a_worker_gets_its_arguments_and_variables(worker: Path) -> None:
    context = {
        "command_prefix": [], "py_executable": sys.executable, "override_worker_entrypoint": None, "java_jars": [],
        "env_vars": {"ONE": "1 and more", "PATH_OF_TWO": "${HOME}/two", "NONE": "${ABSENT}x"},
    }  # fmt: skip
    done = started(worker, context, "--node-ip-address=::1", "a b")
    assert done.stdout.split("\n") == ["1 and more /home/two x --node-ip-address=::1 a b", ""], done.stderr


@pytest.mark.slow
def test_an_environment_with_more_than_variables_is_set_up_by_ray(worker: Path) -> None:
    done = started(worker, {"command_prefix": ["ONE=1"], "env_vars": {"PATH_OF_TWO": "2"}}, "--x")
    assert done.stdout.split() == ["1", "2", "None", "--x"], done.stderr
