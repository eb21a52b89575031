"""Ray: starting or joining a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import ray

from adaptive_ray.errors import UserError
from trainables.memory import KEEP_MEMORY

#: Ray Train's controller polls the workers this often (seconds; default 2), and a report waits for the poll.
_POLL_SECONDS = "0.2"
#: A machine of one's own is not taken away, so that no run needs a process that watches out for it.
_ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def local_resources() -> tuple[float, float]:
    """CPU cores and GPUs of this machine, as a cluster started here would have them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import torch

    return cores, torch.cuda.device_count()


def cluster_address(address: str | None) -> str | None:
    """The running cluster to join, if any: the given one, or the one that a job or the environment names."""
    return address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def announced() -> Iterator[None]:
    """Names the cluster that this process started as the machine's current one, as ``ray start`` does.

    Ray Train frees a stopped run's workers after asking that one whether the run still lives. What another
    ``ray start`` has left there, running or long gone, would be asked instead, and the workers never be freed.
    """
    pointer = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108
    before = pointer.read_text() if pointer.exists() else None
    pointer.write_text(ray.get_runtime_context().gcs_address)
    try:
        yield
    finally:
        pointer.unlink(missing_ok=True)
        if before is not None:
            pointer.write_text(before)


@contextmanager
def cluster(address: str | None) -> Iterator[tuple[float, float]]:
    """Joins the cluster at ``address``, or starts one on this machine; yields its CPU cores and GPUs.

    On leaving, a cluster that was started here is stopped; one that was joined loses this driver's actors only.

    Raises:
        UserError: Nothing answers at the address.
    """
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = _POLL_SECONDS
    environment = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _POLL_SECONDS, **KEEP_MEMORY}
    address = cluster_address(address)
    try:
        if address:
            ray.init(address=address, runtime_env={"env_vars": environment}, log_to_driver=False)
        else:
            cpus, gpus = local_resources()
            # A race is a dozen processes that mostly wait; Ray warns of them as if each wanted a core of its own.
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
            # Without the dashboard, stopped trials keep their workers' places reserved for most of a minute.
            ray.init(
                address="local",
                num_cpus=int(cpus),
                num_gpus=int(gpus),
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                runtime_env={"env_vars": {**environment, **_ALONE}},
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
    try:
        resources = ray.cluster_resources()
        with nullcontext() if address else announced():
            yield resources.get("CPU", 0), resources.get("GPU", 0)
    finally:
        ray.shutdown()
