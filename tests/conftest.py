"""Fixtures of all tests: a real local Ray cluster without usage reports."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # of the developer's own cluster
    os.environ.pop(name, None)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
os.environ.setdefault("RAY_worker_niceness", "15")  # tests without Ray run beside the workers, and come first
# Threads that wait for each other sleep soon. By default they spin, which takes a core from the tests beside them.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

REPOSITORY = Path(__file__).resolve().parents[1]

# The same examples in every run: a failure can be repeated, and does not come by chance.
settings.register_profile("reproducible", derandomize=True)
settings.load_profile("reproducible")


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """CIFAR-10 in torchvision's layout, if it is in shared/data beside the checkout."""
    root = REPOSITORY.parent / "shared" / "data"
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 at {root}")
    return root


@contextmanager
def short_directory() -> Iterator[Path]:
    """A temporary directory with a short path; in ``tmp_path`` the paths of Ray's sockets would be too long."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _own_ray_files() -> Iterator[None]:
    """Separates the files of the tests' Ray clusters from those of other clusters on this machine."""
    with short_directory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(path))
        yield


@pytest.fixture(scope="module")
def ray_files() -> Iterator[Path]:
    """An empty directory for ``RAY_TMPDIR``."""
    with short_directory() as path:
        yield path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a Ray cluster run last, because the others start or join other clusters."""
    items.sort(key=lambda item: "local_ray" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray cluster with four CPUs, shared by all tests that do not need another one."""
    from adaptive_ray.ray_cluster.cluster import started

    with started(cpus=4):
        yield
