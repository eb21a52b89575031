"""Contrastive losses by name, and the interface for one of the user's own."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from trainables.settings.loss import NAMES, check_name
from trainables.simclr.ntxent import dcl, nt_xent


class ContrastiveLoss(Protocol):
    """What the training loop asks of a loss; ``nt_xent`` says what the arguments are.

    With several workers it must return the global batch's loss on every one of them, and a gradient whose mean over
    the workers is the gradient of that loss. ``images`` is given for batches that hold an image twice, and may be left
    out of the arguments: rows of one image are then each other's negatives.
    """

    def __call__(
        self,
        z_a: Tensor,
        z_b: Tensor,
        temperature: float,
        *,
        weights: Tensor | None = None,
        images: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        shares: Sequence[int] | None = None,
    ) -> Tensor: ...


LOSSES: dict[str, ContrastiveLoss] = dict(zip(NAMES, (nt_xent, dcl), strict=True))


def loss_named(name: str) -> ContrastiveLoss:
    """A loss of ``LOSSES``, or the user's own, imported from ``package.module:function``.

    Raises:
        ValueError: There is no such loss, or it cannot be imported.
    """
    if check_name(name) in LOSSES:
        return LOSSES[name]
    module, _, function = name.partition(":")
    try:
        loss: ContrastiveLoss = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module may raise anything when it is imported
        raise ValueError(f"loss {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(loss):
        raise ValueError(f"loss {name!r} is no function but {type(loss).__name__}")
    return loss


def told_of_images(loss: ContrastiveLoss) -> tuple[ContrastiveLoss, bool]:
    """Makes a loss accept ``images``; returns it, and whether it uses them."""
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # some of C's functions have none
        parameters = []
    if any(each.name == "images" or each.kind is each.VAR_KEYWORD for each in parameters):
        return loss, True
    return partial(_without_images, loss), False


def _without_images(loss: ContrastiveLoss, *args: Any, images: Tensor | None = None, **more: Any) -> Tensor:
    return loss(*args, **more)


def chance_level(name: str, batch_size: int) -> float:
    """The loss where all images look the same, in nats; nan for a loss of the user's own."""
    negatives = 2 * batch_size - 2
    return {"nt_xent": math.log(negatives + 1), "dcl": math.log(max(negatives, 1))}.get(name, math.nan)
