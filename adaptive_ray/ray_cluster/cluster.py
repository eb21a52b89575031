"""Ray: starting a cluster on this machine that nobody else notices, or joining a running one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partialmethod

import ray
from ray.exceptions import RayError

from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.address import check_address, cluster_address, first_line
from adaptive_ray.ray_cluster.own_packages import ROOT, imports_from
from adaptive_ray.ray_cluster.placement_groups import release_places
from adaptive_ray.ray_cluster.private_directory import private_directory
from adaptive_ray.ray_cluster.ray_compat import RayParams, utils, worker
from adaptive_ray.ray_cluster.signals import ended_once, held_back, taken_over_again
from trainables.training.micro_batch import KEEP_MEMORY

#: Ray Train's controller polls the workers this often (seconds; default 2), and a report waits for the poll.
_POLL_SECONDS = "0.2"
#: A cluster of this machine alone loses no nodes, so no run needs a process that watches for announcements of that.
_ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def local_resources() -> tuple[float, float]:
    """CPU cores and GPUs of this machine, as a cluster started here would have them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import torch

    return cores, torch.cuda.device_count()


def cluster(address: str | None) -> AbstractContextManager[None]:
    """Joins the cluster at ``address``, or starts one on this machine.

    On leaving, a cluster that was started here is stopped; one that was joined loses this driver's actors only.

    Raises:
        UserError: Nothing answers at the address, or no cluster can be started here.
    """
    address = cluster_address(address)
    return joined(address) if address else started(*local_resources())


@contextmanager
def started(cpus: float, gpus: float = 0) -> Iterator[None]:
    """A cluster on this machine, for this process alone: files and ports are its own, and no other Ray is changed.

    Raises:
        UserError: It cannot be started.
    """
    # A race is a dozen processes that mostly wait; Ray warns of them as if each wanted a whole core.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    with private_directory():
        try:
            try:
                with _agent_on_any_port(), _own_signal_handlers(), held_back():
                    ray.init(
                        address="local",
                        num_cpus=int(cpus),
                        num_gpus=int(gpus),
                        include_dashboard=True,
                        dashboard_host="127.0.0.1",
                        dashboard_port=0,  # any: the usual one is for clusters that people start with `ray start`
                        runtime_env=_runtime_environment(_ALONE),
                        log_to_driver=False,
                        logging_level="ERROR",
                    )
            except (OSError, ValueError, RuntimeError, RayError) as error:
                raise UserError(f"Ray does not start on this machine: {first_line(error)}") from None
            with ended_once():
                yield
        finally:
            _shut_down()


@contextmanager
def joined(address: str) -> Iterator[None]:
    """A running cluster.

    Raises:
        UserError: Nothing answers at the address.
    """
    check_address(address)
    try:
        try:
            with _own_signal_handlers(), held_back():
                ray.init(address=address, runtime_env=_runtime_environment({}), log_to_driver=False)
        except (OSError, ValueError, RuntimeError, RayError) as error:
            raise UserError(f"the Ray cluster at {address} cannot be joined: {first_line(error)}") from None
        with ended_once():
            yield
    finally:
        try:
            if ray.is_initialized():
                with held_back():
                    release_places()
        finally:
            _shut_down()


def _shut_down() -> None:
    """Ends this process's part of Ray; signals wait for it.

    Ray's core takes its handler of SIGTERM away when it ends, which leaves none, and seconds are still to come in which
    processes are stopped: ours is put back by what Ray makes next after the core is gone.
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
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = _POLL_SECONDS
    polling = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _POLL_SECONDS}
    return {"env_vars": {**polling, **KEEP_MEMORY, **variables}, "worker_process_setup_hook": imports_from(ROOT)}


@contextmanager
def _agent_on_any_port() -> Iterator[None]:
    """Lets ``ray.init`` take any port for its agent, which it has no argument for.

    On the usual one it would keep a cluster that is started later on this machine from taking jobs.
    """
    usual = RayParams.__init__
    RayParams.__init__ = partialmethod(usual, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        RayParams.__init__ = usual


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keeps ``ray.init`` from taking SIGTERM over: its handlers end the process at once, in the middle of a write.

    There are three: two that Python knows, and one of Ray's C++ core, which it installs when it connects. A SIGTERM
    while it connects (less than a second) is handled after the core has printed a few lines; a second one kills us.
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
