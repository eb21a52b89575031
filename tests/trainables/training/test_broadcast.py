from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from schedulers import Candidate
from tests.trainables.workers import Workers
from trainables.training.broadcast import broadcast_from_rank0

CPU = torch.device("cpu")


def told_by_the_first(silent: bool) -> Any:
    rank = dist.get_rank()
    return broadcast_from_rank0(
        None if silent and rank else {"candidate": Candidate(8, 1 + rank), "scores": [0.1 + rank]}, CPU
    )


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("world", [2, 4])
def test_all_workers_get_the_value_of_rank_0(workers: Workers, world: int, silent: bool) -> None:
    assert workers.run(world, told_by_the_first, silent) == [{"candidate": Candidate(8), "scores": [0.1]}] * world


def test_a_single_worker_keeps_its_value() -> None:
    assert broadcast_from_rank0(Candidate(8), CPU) == Candidate(8)
    with pytest.raises(AssertionError, match="rank 0 must provide"):
        broadcast_from_rank0(None, CPU)
