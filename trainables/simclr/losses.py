"""Looks up contrastive losses by name and defines the interface of custom losses."""

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
    """Interface of a loss; see ``nt_xent`` for the arguments.

    With several workers it must return the loss of the global batch on each of them, and the mean of the workers'
    gradients must be the gradient of that loss. ``images`` is passed for batches that hold an image twice. A loss
    without this argument treats the rows of one image as negatives of each other.
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
        shard_sizes: Sequence[int] | None = None,
    ) -> Tensor: ...


LOSSES: dict[str, ContrastiveLoss] = dict(zip(NAMES, (nt_xent, dcl), strict=True))


def loss_named(name: str) -> ContrastiveLoss:
    """Returns a loss of ``LOSSES``, or imports a custom one from ``package.module:function``.

    Raises:
        ValueError: The loss is unknown or cannot be imported.
    """
    if check_name(name) in LOSSES:
        return LOSSES[name]
    module, _, function = name.partition(":")
    try:
        loss: ContrastiveLoss = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing a custom module may raise anything
        raise ValueError(f"loss {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(loss):
        raise ValueError(f"loss {name!r} must be callable, but is {type(loss).__name__}")
    return loss


def with_images_argument(loss: ContrastiveLoss) -> tuple[ContrastiveLoss, bool]:
    """Returns the loss with an argument ``images``, and whether the loss itself takes it."""
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # some functions in C have no signature
        parameters = []
    if any(each.name == "images" or each.kind is each.VAR_KEYWORD for each in parameters):
        return loss, True
    return partial(_without_images, loss), False


def _without_images(loss: ContrastiveLoss, *args: Any, images: Tensor | None = None, **more: Any) -> Tensor:
    return loss(*args, **more)


def chance_level(name: str, batch_size: int) -> float:
    """Returns the loss in nats if all projections are equal, or NaN for a custom loss."""
    negatives = 2 * batch_size - 2
    return {"nt_xent": math.log(negatives + 1), "dcl": math.log(max(negatives, 1))}.get(name, math.nan)
