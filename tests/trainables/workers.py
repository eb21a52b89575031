"""Processes that act as workers of torch.distributed, with gloo and without Ray."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


class Workers:
    """Up to four processes. They are reused, so that they start and import torch only once."""

    def __init__(self, directory: Path) -> None:
        context = torch.multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["trainables.training.run", __name__])
        self._executor = ProcessPoolExecutor(4, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))
        self._rendezvous = (directory / f"rendezvous-{number}" for number in count())

    def run(self, workers: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns the results of ``function(*arguments)`` of each worker. The function must be importable."""
        file = next(self._rendezvous)
        task = pickle.dumps((function, arguments))  # by value; the executor's pickler would share tensors' memory
        futures: list[Future[bytes]] = [
            self._executor.submit(_work, rank, workers, str(file), task) for rank in range(workers)
        ]
        return [pickle.loads(future.result(timeout=240)) for future in futures]

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)


def _work(rank: int, workers: int, file: str, task: bytes) -> bytes:
    function, arguments = pickle.loads(task)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=workers, timeout=timedelta(seconds=180)
    )
    try:
        dist.barrier()  # a worker must not disconnect while others are still connecting
        return pickle.dumps(function(*arguments))
    finally:
        dist.destroy_process_group()
