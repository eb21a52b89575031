"""Ray Train backend for torch that imports torch in the workers only.

``ray.train.torch.TorchTrainer`` also imports torch in the trial's process and in Ray Train's controller, which takes
two of the four seconds that each of them needs to start.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from trainables.on_ray.ray_compat import get_address_and_port

#: Timeout of collective operations.
_TIMEOUT = timedelta(minutes=30)


class PeerLostError(RuntimeError):
    """Raised in a worker that lost the connection to another one, because a process died or the network failed."""


def train_in_worker(config: dict[str, Any]) -> None:
    """Calls ``trainables.on_ray.worker.train_worker``. Importing this function does not import torch."""
    from trainables.on_ray.worker import train_worker

    train_worker(config)


class _ProcessGroup(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True  # as ``ray.train.torch.get_device`` expects

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        workers = len(worker_group)
        if workers == 1:
            return
        address, port = worker_group.execute_single(0, get_address_and_port)
        backend = "nccl" if backend_config.gpus else "gloo"
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend, address, port, rank, workers)
                for rank in range(workers)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        if len(worker_group) > 1:
            ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=10)


@dataclass
class ProcessGroupConfig(BackendConfig):  # type: ignore[misc]
    """Backend of ``DataParallelTrainer`` that initialises the default process group if there are several workers."""

    gpus: bool  # use NCCL, not Gloo

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroup


def _join(backend: str, address: str, port: int, rank: int, workers: int) -> None:
    """Initialises the process group; runs in a worker."""
    import torch.distributed as dist

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # raise an error if communication hangs
    dist.init_process_group(backend, "env://", timeout=_TIMEOUT, rank=rank, world_size=workers)


def _leave() -> None:
    """Destroys the process group; runs in a worker."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
