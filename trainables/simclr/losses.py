"""Contrastive losses by name, and the interface for one of the user's own."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

from trainables.simclr.ntxent import dcl, nt_xent


class ContrastiveLoss(Protocol):
    """What the training loop asks of a loss; ``nt_xent`` says what the arguments are.

    With several workers it must return the global batch's loss on every one of them, and a gradient whose mean over
    the workers is the gradient of that loss.
    """

    def __call__(
        self,
        z_a: Tensor,
        z_b: Tensor,
        temperature: float,
        *,
        weights: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        shares: Sequence[int] | None = None,
    ) -> Tensor: ...


LOSSES: dict[str, ContrastiveLoss] = {"nt_xent": nt_xent, "dcl": dcl}


def loss_named(name: str) -> ContrastiveLoss:
    """A loss of ``LOSSES``, or the user's own as ``package.module:function``.

    Raises:
        ValueError: There is no such loss.
    """
    if name in LOSSES:
        return LOSSES[name]
    module, separator, function = name.partition(":")
    if not separator:
        raise ValueError(f"loss {name!r} is unknown: use one of {', '.join(LOSSES)}, or package.module:function")
    try:
        loss: ContrastiveLoss = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"loss {name!r} cannot be imported: {error}") from None
    return loss


def chance_level(name: str, batch_size: int) -> float:
    """The loss where all images look the same, in nats; nan for a loss of the user's own."""
    negatives = 2 * batch_size - 2
    return {"nt_xent": math.log(negatives + 1), "dcl": math.log(max(negatives, 1))}.get(name, math.nan)
