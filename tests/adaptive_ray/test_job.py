"""The program as a job on a running cluster: `ray start --head`, `ray job submit`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster of one node, started as an operator would: the address for jobs, and the environment to reach it."""
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    environment.pop("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", None)  # a cluster's nodes may be taken away
    # The cluster asks for a token by default; whoever connects has it and says so.
    environment["RAY_AUTH_MODE"] = "token"
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    command = [RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}", "--disable-usage-stats"]
    with (tmp_path / "head.log").open("w") as log:
        node = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not answers(dashboard):
            assert node.poll() is None, (tmp_path / "head.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "head.log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:  # `ray stop` would stop every cluster on this machine, also one that somebody works with
        os.killpg(node.pid, signal.SIGTERM)
        try:
            node.wait(3)
        except subprocess.TimeoutExpired:
            os.killpg(node.pid, signal.SIGKILL)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_job_follows_its_log_to_the_same_results(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    checkout = tmp_path / "checkout"  # what a user has: the packages and the configurations, nothing installed
    for folder in ("adaptive_ray", "trainables", "schedulers", "configs"):
        shutil.copytree(REPOSITORY / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / ".rayignore", checkout)
    small = "--set budget.samples=2048 --set race.window.samples=1024 --set candidates=[64]"
    small += " --set simclr.encoder.width=8 --set tracking.enabled=false"
    submitted = subprocess.run(
        [
            RAY, "job", "submit", "--address", address, "--working-dir", str(checkout), "--",
            "adaptive-ray", "run", "configs/quickstart.yaml", *small.split(), "--runs-dir", str(tmp_path / "runs"),
            "--name", "job",
        ],
        env=environment, capture_output=True, text=True, timeout=360, check=False,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    assert "samples, reference loss" in submitted.stdout  # the log was followed
    assert "chosen batch size" in submitted.stdout
    result = json.loads((tmp_path / "runs" / "job" / "result.json").read_text())
    assert result["chosen_batch_size"] == 64
    assert result["probe_accuracy"] > result["untrained_probe_accuracy"]
    assert (tmp_path / "runs" / "job" / "report.html").exists()
