"""Backbones of torchvision by name, made ready for SimCLR: no classifier, small images, exact batch statistics.

torchvision takes seconds to import, so it is imported by those who ask for one of its backbones only.
"""

from __future__ import annotations

import difflib
import functools
import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from trainables.simclr.batchnorm import GlobalBatchNorm2d

#: Backbones that are built for one image size, and how their constructors want to be told.
_SIZED: dict[str, Callable[[int], dict[str, Any]]] = {
    "vit_": lambda size: {"image_size": size},
    "maxvit_": lambda size: {"input_size": (size, size)},
}
#: They classify at inner layers too, warn unless told how to draw their weights, and expect pixels in [-1, 1].
INCEPTIONS = ("googlenet", "inception_v3")


class Backbone(NamedTuple):
    """What is known about a backbone before it is built."""

    features: int  # dimensions of the representation
    patches: bool  # whether it cuts images into patches, and so has no stem for small ones


@functools.cache
def describe(name: str) -> Backbone:
    """Looks a backbone up in torchvision.

    Raises:
        ValueError: torchvision has no such classification network, or it has no linear classifier.
    """
    import torchvision.models

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, ["cifar_resnet", *names], n=1)
        hint = f"{name!r} is none; did you mean {near[0]!r}?" if near else f"{name!r} is none"
        raise ValueError(f"use cifar_resnet or a classification network of torchvision.models; {hint}")
    with _on_meta():
        network = _construct(name)
    linear = _last_linear(network)
    if linear is None:
        raise ValueError(f"{name} has no linear classifier that could be removed; use another backbone")
    _, stem = first_convolution(network)
    # MaxViT's stem is an ordinary one, but what comes after it cuts the map into windows of a fixed number.
    return Backbone(linear[1].in_features, stem.kernel_size == stem.stride or name.startswith("maxvit_"))


def build_backbone(name: str, *, stem: str, channels: int, image_size: int | None = None) -> nn.Module:
    """A network of torchvision that maps float [n, channels, H, W] to its classifier's input, [n, features].

    Batch norms are those of the global batch. Dropout and stochastic depth are left out: their draws would make the
    reference loss random, and differ between one worker and two, and between a run and its resumption.

    Args:
        name: Of the network in ``torchvision.models``.
        stem: ``imagenet``: as torchvision has it. ``cifar``: the first convolution has stride 1, and 3 x 3 pixels if it
            had 7 x 7 or more; a max pooling after a strided one is left out (Chen et al. 2020, B.9).
        channels: Of the images.
        image_size: Their side in pixels; with it the network is tried before it is built. None: torchvision's default.

    Raises:
        ValueError: The network cannot take images of this size.
    """
    if image_size is not None:
        _try(name, stem, channels, image_size)
    return _build(name, stem, channels, image_size)


def _build(name: str, stem: str, channels: int, image_size: int | None) -> nn.Module:
    from torchvision.ops import StochasticDepth

    network = _construct(name, image_size)
    if (linear := _last_linear(network)) is not None:
        network.set_submodule(linear[0], nn.Identity())
    _adapt_stem(network, stem, channels)
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout | StochasticDepth):
            network.set_submodule(path, nn.Identity())
        elif isinstance(module, nn.BatchNorm2d):
            norm = GlobalBatchNorm2d(module.num_features, module.eps, module.momentum)
            norm.load_state_dict(module.state_dict())
            network.set_submodule(path, norm)
    return network


def _construct(name: str, image_size: int | None = None) -> nn.Module:
    from torchvision.models import get_model

    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in INCEPTIONS else {}
    for family, size_option in _SIZED.items():
        if name.startswith(family) and image_size is not None:
            options |= size_option(image_size)
    network: nn.Module = get_model(name, weights=None, **options)
    return network


def _try(name: str, stem: str, channels: int, image_size: int) -> None:
    """One forward pass without memory or arithmetic."""
    try:
        with _on_meta(), torch.no_grad():
            network = _build(name, stem, channels, image_size).to("meta").eval()
            network(torch.empty(2, channels, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:  # whatever the network checks, or its layers
        raise ValueError(
            f"backbone {name} with stem {stem} cannot take images of {image_size} x {image_size} pixels "
            f"({one_line(error)}); use images of another size, or another backbone"
        ) from None


@contextmanager
def _on_meta() -> Iterator[None]:
    """Networks are built on the meta device: in milliseconds, without memory, and without random numbers."""
    with torch.device("meta"), _RealNumbers():
        yield


class _RealNumbers(TorchFunctionMode):
    """Tensors of given numbers stay on the CPU: RegNets compute with such, and read the widths of their layers off."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **device | (kwargs or {}))


def _last_linear(network: nn.Module) -> tuple[str, nn.Linear] | None:
    found = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    return found[-1] if found else None


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))


def _adapt_stem(network: nn.Module, stem: str, channels: int) -> None:
    """Brings the first convolution, and a pooling right after it, to the images.

    A convolution of another shape is initialised as the network initialises its own: drawn from the weights that it
    had, whatever their distribution, at the scale that keeps its outputs' variance, 1 / sqrt(fan-in).
    """
    layers = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    path, first = layers[0]
    assert isinstance(first, nn.Conv2d)
    kernel_size, padding = first.kernel_size, first.padding
    if stem == "cifar" and max(first.stride) > 1:  # VGG's stem is one for small images as it is
        first.stride = (1, 1)
        if max(kernel_size) >= 7:
            kernel_size, padding = (3, 3), (1, 1)
        if isinstance(layers[1][1], nn.MaxPool2d):
            network.set_submodule(layers[1][0], nn.Identity())
    if (channels, kernel_size) == (first.in_channels, first.kernel_size):
        return
    new = nn.Conv2d(channels, first.out_channels, kernel_size, first.stride, padding, bias=False)  # type: ignore[arg-type]
    drawn = first.weight.detach().flatten()[torch.randint(first.weight.numel(), new.weight.shape)]
    new.weight = nn.Parameter(drawn * math.sqrt(first.weight[0].numel() / new.weight[0].numel()))
    new.bias = first.bias
    network.set_submodule(path, new)


def one_line(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
