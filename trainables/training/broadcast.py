"""What the first worker has decided, on all workers: numbers that each computed itself might differ in a last bit."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

Decision = TypeVar("Decision")


def agreed(decision: Decision | None, device: torch.device) -> Decision:
    """The first worker's ``decision``, on every worker; called by all of them at the same step.

    Args:
        decision: What can be pickled; the other workers may give None.
        device: Over which workers talk.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        told = [decision]
        dist.broadcast_object_list(told, src=0, device=device)
        decision = told[0]
    assert decision is not None, "the first worker has decided nothing"
    return decision
