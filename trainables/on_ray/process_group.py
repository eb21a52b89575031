"""Ray Train for torch, where only the workers import it.

``ray.train.torch.TorchTrainer`` imports torch in the processes of the trial and of Ray Train's controller too, which
compute nothing: two seconds of a core for each, of the four that they take to start.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from trainables.on_ray.ray_compat import get_address_and_port

#: After which a worker gives up on the others.
_TIMEOUT = timedelta(minutes=30)


class PeerLostError(RuntimeError):
    """A worker has lost its connection to another one: the symptom of a dead process, or of a broken network."""


def train_in_worker(config: dict[str, Any]) -> None:
    """``trainables.on_ray.worker.train_worker``, by a name that can be passed on without importing it."""
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
    """For ``DataParallelTrainer``: several workers form the default process group; a worker alone has none.

    Args:
        gpus: Whether they have GPUs, and so speak NCCL and not Gloo.
    """

    gpus: bool

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroup


def _join(backend: str, address: str, port: int, rank: int, workers: int) -> None:
    """Runs in a worker."""
    import torch.distributed as dist

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # communication that hangs ends in an error
    dist.init_process_group(backend, "env://", timeout=_TIMEOUT, rank=rank, world_size=workers)


def _leave() -> None:
    """Runs in a worker."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
