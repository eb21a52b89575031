"""Other Ray clusters that start and crash on the same machine do not affect a run, nor it them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from tests.adaptive_ray.processes import commands, descendants, left_of, ports, psutil

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[3]
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"
RAY = Path(sys.executable).parent / "ray"
SMALL = [
    "--set",
    "simclr.encoder.width=8",
    "--set",
    "trial.cpus_per_worker=1",
    "--set",
    "tracking.enabled=false",
    "--set",
    "dataset.limit=1024",
]
#: A race between two, and a single run.
RACE = ["--set", "candidates=[64,256]", "--set", "race.window.samples=4096"]
ALONE = ["--set", "candidates=[64]", "--set", "explore=none"]
BUDGET = 12_288
#: Another user's number.
SOMEBODY = 65534
#: The ports that `ray start --head` takes unless it is observed others.
USUAL_PORTS = {6379, 8265, 10001, 52365}
#: What somebody runs who gives no address: the cluster that Ray finds, and what is there.
PLAIN = """
import json, ray
KEPT = {"_AutoscalingCoordinatorActor"}  # by Ray itself, one for all jobs of a cluster
from ray.util.state import list_actors
ray.init(log_to_driver=False)
places = [group["state"] for group in ray.util.placement_group_table().values()]
print(json.dumps({
    "address": ray.get_runtime_context().gcs_address,
    "nodes": len(ray.nodes()),
    "computed": ray.get(ray.remote(lambda: 6 * 7).remote()),
    "actors": [actor.class_name for actor in list_actors() if actor.state != "DEAD" and actor.class_name not in KEPT],
    "places": [state for state in places if state != "REMOVED"],
}))
"""
#: What our command says of addresses.
CHECK = """
import sys
from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.address import check_address
for address in sys.argv[1:]:
    try:
        check_address(address)
    except UserError as error:
        print(error)
"""


@dataclass
class Head:
    """A cluster of one node, started with `ray start`."""

    process: subprocess.Popen[bytes]
    address: str
    dashboard: str
    log: Path


@dataclass
class Observed:
    """The results of all processes."""

    outputs: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    ports: set[int] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    plain: list[dict[str, Any]] = field(default_factory=list)
    expected: str = ""
    files: list[dict[str, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    imported: list[str] = field(default_factory=list)  # where the job's processes found our packages


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def head(environment: dict[str, str], log: Path) -> Iterator[Head]:
    """Stops the process at the end."""
    port, dashboard, clients = free_port(), free_port(), free_port()
    command = [RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--disable-usage-stats"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--ray-client-server-port={clients}", "--dashboard-agent-listen-port=0"]
    with log.open("w") as file:
        node = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (answers(dashboard) and "ray start --address" in log.read_text()):
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield Head(node, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", log)
    finally:  # `ray stop` would stop every cluster on this machine, also one that somebody works with
        crash(node)


def crash(node: subprocess.Popen[bytes]) -> None:
    """Kills the processes of a node with SIGKILL."""
    started = descendants(node.pid)
    node.kill()
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.wait()
    assert left_of(started, within=20) == []


def submit(environment: dict[str, str], address: str, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """As a user does: again, while the node's agent is still starting."""
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            [RAY, "job", "submit", "--address", address, "--working-dir", str(folder), "--", *command],
            env=environment, capture_output=True, text=True, timeout=360, check=False,
        )  # fmt: skip
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def files(folder: Path) -> dict[str, str]:
    """Names and contents of the files in Ray's directory, without those that a cluster rewrites (*.json)."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.suffix != ".json"}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, ray_files: Path) -> Observed:
    """Two runs of two users and a job, beside a head that crashes, another head, and a plain `ray.init()`."""
    ray_files.chmod(0o1777)  # instead of /tmp
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment = {**kept, "RAY_TMPDIR": str(ray_files), "PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    environment |= {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    # Clusters require a token by default; clients must send it.
    theirs = {**environment, "RAY_AUTH_MODE": "token"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=theirs, check=True, capture_output=True)
    ours = {**environment, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    observed = Observed()

    def run(name: str, settings: list[str], *user: str) -> tuple[subprocess.Popen[str], Path]:
        """Runs in a folder with packages that have the names of ours."""
        folder = ray_files / name
        for package in ("schedulers", "trainables"):
            (folder / package).mkdir(parents=True)
            (folder / package / "__init__.py").write_text("raise ImportError('not ours')\n")
        for path in (folder, *folder.rglob("*")) if user else ():
            os.chown(path, SOMEBODY, SOMEBODY)
        command = [*user, sys.executable, "-m", "adaptive_ray", "run", str(QUICKSTART), *SMALL, "--runs-dir", "runs"]
        command += ["--name", "digits", "--set", f"budget.samples={BUDGET}", *settings]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**ours, "HOME": str(folder)} if user else ours
        process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
        return process, folder / "runs" / "digits"

    def plain() -> dict[str, Any]:
        command = [sys.executable, "-c", PLAIN]
        done = subprocess.run(command, env=theirs, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return cast(dict[str, Any], json.loads(done.stdout.splitlines()[-1]))

    def refused(*addresses: str) -> list[str]:
        command = [sys.executable, "-c", CHECK, *addresses]
        done = subprocess.run(command, env={**ours, **theirs}, capture_output=True, text=True, timeout=120, check=False)
        return done.stdout.splitlines()

    with ExitStack() as stack:
        with head(theirs, home / "crashed.log") as crashed:
            first, first_run = run("first", RACE)
            stack.callback(first.kill)
            # Ray's file still has the address of the crashed head when the second run starts.
        second, second_run = run("second", ALONE, *somebody_else())
        stack.callback(second.kill)
        alive = stack.enter_context(head(theirs, home / "alive.log"))
        observed.refused = refused(crashed.address, own_cluster(first.pid))
        observed.plain.append(plain())
        observed.files.append(files(ray_files / "ray"))
        observed.ports = ports([*descendants(first.pid), *descendants(second.pid)])
        assert first.poll() is None
        assert second.poll() is None
        job = ["adaptive-ray", "run", "configs/quickstart.yaml", *SMALL, *ALONE, "--set", "budget.samples=2048"]
        job += ["--runs-dir", str(home / "runs"), "--name", "job"]
        done = submit(theirs, alive.dashboard, checkout(home), *job)
        observed.codes["job"], observed.outputs["job"] = done.returncode, done.stdout + done.stderr
        observed.imported = [file.read_text() for file in home.glob("imported-*")]
        for name, process in (("first", first), ("second", second)):
            observed.outputs[name], _ = process.communicate(timeout=300)
            observed.codes[name] = process.returncode
        for name, directory in (("first", first_run), ("second", second_run), ("job", home / "runs" / "job")):
            assert (directory / "result.json").exists(), observed.outputs[name][-3000:]
            observed.results[name] = json.loads((directory / "result.json").read_text())
        observed.plain.append(plain())
        deadline = time.monotonic() + 30
        while observed.plain[-1]["places"] + observed.plain[-1]["actors"] and time.monotonic() < deadline:
            observed.plain.append(plain())
        observed.files.append(files(ray_files / "ray"))
        assert alive.process.poll() is None
        observed.expected = alive.address
    observed.left = sorted(path.name for path in ray_files.iterdir())
    return observed


def checkout(home: Path) -> Path:
    """A job's working directory: packages and configurations, not installed. Every import writes a file."""
    folder = home / "checkout"
    for name in ("adaptive_ray", "trainables", "schedulers", "configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / ".rayignore", folder)
    with (folder / "trainables" / "__init__.py").open("a") as file:
        file.write(
            f"import os, pathlib; pathlib.Path({str(home)!r}, f'imported-{{os.getpid()}}').write_text(__file__)\n"
        )
    return folder


def own_cluster(pid: int) -> str:
    """The address of the cluster that a run has started, as soon as it has workers."""
    deadline = time.monotonic() + 120
    while True:
        running = commands(descendants(pid))
        found = [word for command in running for word in command.split() if word.startswith("--gcs-address=")]
        if found and any(command.startswith("ray::") and "Agent" not in command for command in running):
            return found[0].partition("=")[2]
        assert time.monotonic() < deadline, running
        time.sleep(1)


def somebody_else() -> list[str]:
    """A prefix that runs a command as another user with the same read permissions; empty if that is not possible."""
    command = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    command += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    return command if subprocess.run([*command, "true"], check=False).returncode == 0 else []


@pytest.mark.parametrize("name", ["first", "second"])
def test_runs_beside_other_clusters_finish(observed: Observed, name: str) -> None:
    assert observed.codes[name] == 0, observed.outputs[name]
    result = observed.results[name]
    assert result["chosen_batch_size"] in (64, 256)
    assert result["samples_seen"] >= BUDGET
    assert result["probe_accuracy"] > result["untrained_probe_accuracy"]


def test_a_job_follows_its_log_to_the_same_results(observed: Observed) -> None:
    output, result = observed.outputs["job"], observed.results["job"]
    assert observed.codes["job"] == 0, output
    assert "samples, reference loss" in output  # the log was followed
    assert "chosen batch size" in output
    assert result["chosen_batch_size"] == 64
    assert result["probe_accuracy"] > result["untrained_probe_accuracy"]
    assert observed.imported  # by the job's driver and by its workers
    assert {Path(file).parents[2].name for file in observed.imported} == {"working_dir_files"}


def test_without_an_address_ray_init_joins_the_shared_cluster(observed: Observed) -> None:
    for plain in observed.plain:
        assert plain["address"].rpartition(":")[2] == observed.expected.rpartition(":")[2]
        assert plain["nodes"] == 1
        assert plain["computed"] == 42
    assert observed.plain[0]["actors"] == []  # no actors of the runs


def test_a_job_leaves_nothing_in_the_cluster(observed: Observed) -> None:
    assert observed.plain[-1]["places"] == []
    assert observed.plain[-1]["actors"] == []


def test_files_of_ray_are_neither_changed_nor_left_behind(observed: Observed) -> None:
    assert observed.files[0]
    assert observed.files[0] == observed.files[1]
    assert observed.left == ["first", "ray", "second"]


def test_default_ports_are_not_used(observed: Observed) -> None:
    assert len(observed.ports) > 10
    assert not observed.ports & USUAL_PORTS


def test_clusters_that_cannot_be_joined_are_refused_at_once(observed: Observed) -> None:
    crashed, others = observed.refused
    assert "Connection refused" in crashed
    assert "is private to another run" in others
