"""Starts a private Ray cluster on this machine, or joins a running one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partialmethod

import ray
from ray.exceptions import RayError

from adaptive_ray.errors import UserError, first_line
from adaptive_ray.ray_cluster import setup_worker
from adaptive_ray.ray_cluster.address import check_address, cluster_address
from adaptive_ray.ray_cluster.own_packages import ROOT, imports_from
from adaptive_ray.ray_cluster.placement_groups import release_places
from adaptive_ray.ray_cluster.private_directory import private_directory
from adaptive_ray.ray_cluster.ray_compat import RayParams, utils, worker
from adaptive_ray.ray_cluster.signals import ended_once, held_back, taken_over_again
from trainables.training.memory_limits import KEEP_MEMORY, SHORT_SPIN

#: Interval in seconds at which Ray Train's controller polls reports of workers (default: 2).
_POLLING = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
#: A local cluster loses no nodes, so the preemption watcher is not needed.
_LOCAL = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def local_resources() -> tuple[float, float]:
    """Number of CPU cores and GPUs of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import torch

    return cores, torch.cuda.device_count()


def cluster(address: str | None) -> AbstractContextManager[str | None]:
    """Joins the cluster at ``address``, or starts one on this machine and yields its dashboard's URL.

    On exit, a started cluster is stopped; in a joined cluster only this driver's actors are stopped.

    Raises:
        UserError: The cluster cannot be reached or started.
    """
    address = cluster_address(address)
    return joined(address) if address else started(*local_resources())


@contextmanager
def started(cpus: float, gpus: float = 0) -> Iterator[str | None]:
    """Starts a cluster that is private to this process, with its own files and ports. Yields its dashboard's URL."""
    # Most processes of a race are idle; without this Ray warns that there are too few cores.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    # By default Ray starts a worker per core at once, without the runtime environment: none of them would be used.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Ray's default of 15 gives a thread almost no time beside a busy program, and the other threads wait for it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with private_directory():
        try:
            with _light_processes():
                dashboard = _connect(
                    "Ray cannot be started on this machine",
                    address="local",
                    num_cpus=int(cpus),
                    num_gpus=int(gpus),
                    include_dashboard=True,
                    dashboard_host="127.0.0.1",
                    dashboard_port=0,  # any free port: the default is left to `ray start`
                    runtime_env=_runtime_environment(_LOCAL),
                    logging_level="ERROR",
                )
            with ended_once():
                yield dashboard
        finally:
            _shut_down()


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Joins a running cluster."""
    check_address(address)
    try:
        _connect(
            f"the Ray cluster at {address} cannot be joined", address=address, runtime_env=_runtime_environment({})
        )
        with ended_once():
            yield
    finally:
        try:
            if ray.is_initialized():
                with held_back():
                    release_places()
        finally:
            _shut_down()


def _connect(problem: str, **arguments: object) -> str | None:
    """Calls ``ray.init`` and returns the dashboard's URL; an error becomes a ``UserError`` that begins ``problem``."""
    try:
        with _own_signal_handlers(), held_back():
            context = ray.init(**arguments, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise UserError(f"{problem}: {first_line(error)}") from None
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _shut_down() -> None:
    """Shuts Ray down in this process and defers signals until then.

    Ray's core removes the SIGTERM handler when it exits, several seconds before ``ray.shutdown`` returns. The patched
    ``FunctionActorManager``, which Ray creates right after that, restores our handler.
    """
    made_next = worker.FunctionActorManager

    def make_next(*arguments: object) -> object:
        with taken_over_again():
            return made_next(*arguments)

    worker.FunctionActorManager = make_next
    try:
        with held_back(), taken_over_again():
            ray.shutdown()
    finally:
        worker.FunctionActorManager = made_next


def _runtime_environment(variables: dict[str, str]) -> dict[str, object]:
    os.environ.update(_POLLING)
    return {
        "env_vars": {**_POLLING, **KEEP_MEMORY, **SHORT_SPIN, **variables},
        "worker_process_setup_hook": imports_from(ROOT),
    }


@contextmanager
def _light_processes() -> Iterator[None]:
    """Changes what ``ray.init`` starts on this machine; it has no arguments for that.

    The agent uses any free port: with the default port, a cluster started later on this machine could not accept jobs.
    Logs are not forwarded to the driver, so no process reads them. Workers start without importing Ray twice.
    """
    usual = RayParams.__init__
    RayParams.__init__ = partialmethod(
        usual, dashboard_agent_listen_port=0, include_log_monitor=False, setup_worker_path=setup_worker.__file__
    )
    try:
        yield
    finally:
        RayParams.__init__ = usual


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Prevents ``ray.init`` from replacing the SIGTERM handler: Ray's handlers exit at once, even during a write.

    Ray installs two handlers in Python and one in its C++ core when it connects. A SIGTERM during that time (less than
    a second) is handled after the core has printed a few lines; a second one kills the process.
    """
    set_handler, connect = utils.set_sigterm_handler, worker.connect

    def connected(*arguments: object, **keywords: object) -> None:
        with taken_over_again():
            connect(*arguments, **keywords)

    utils.set_sigterm_handler, worker.connect = (lambda handler: None), connected
    try:
        yield
    finally:
        utils.set_sigterm_handler, worker.connect = set_handler, connect
