"""Builds torchvision backbones for SimCLR: without classifier, for small images, with global batch statistics.

torchvision takes seconds to import, so it is imported only if one of its backbones is used.
"""

from __future__ import annotations

import difflib
import functools
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from trainables.simclr.batchnorm import GlobalBatchNorm2d

#: Backbones with auxiliary classifiers, which warn without ``init_weights`` and expect pixels in [-1, 1].
INCEPTIONS = ("googlenet", "inception_v3")


class Backbone(NamedTuple):
    """Properties of a backbone."""

    features: int  # dimensions of the representation
    patches: bool  # whether it splits images into patches, so that there is no stem for small images


@functools.cache
def describe(name: str) -> Backbone:
    """Looks up a backbone in torchvision.

    Raises:
        ValueError: torchvision has no such classification network, or the network has no linear classifier.
    """
    import torchvision.models

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, ["cifar_resnet", *names], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"backbone {name!r} is unknown; use cifar_resnet or a classification network of torchvision.models{hint}"
        )
    with _on_meta():
        network = _construct(name)
    linear = _last_linear(network)
    if linear is None:
        raise ValueError(f"{name} has no linear classifier to remove; use another backbone")
    _, stem = first_convolution(network)
    # MaxViT has an ordinary stem, but splits the feature map into a fixed number of windows.
    return Backbone(linear[1].in_features, stem.kernel_size == stem.stride or name.startswith("maxvit_"))


def build_backbone(name: str, *, stem: str, channels: int, image_size: int | None = None) -> nn.Module:
    """Builds a torchvision network that maps float [n, channels, H, W] to its classifier's input, [n, features].

    Batch norms use the statistics of the global batch. Dropout and stochastic depth are removed: they would make the
    reference loss random and results dependent on the number of workers.

    Args:
        name: Name of the network in ``torchvision.models``.
        stem: ``imagenet``: torchvision's stem. ``cifar``: the first convolution has stride 1 and, if its kernel was
            7 x 7 or larger, a 3 x 3 kernel; max pooling after a strided convolution is removed (Chen et al. 2020, B.9).
        channels: Channels of the images.
        image_size: Height and width of the images in pixels; the network is checked with it. None: torchvision's
            default, without check.

    Raises:
        ValueError: The network does not accept images of this size.
    """
    if image_size is not None:
        _check(name, stem, channels, image_size)
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
    if image_size is not None:  # these are built for one image size
        if name.startswith("vit_"):
            options["image_size"] = image_size
        elif name.startswith("maxvit_"):
            options["input_size"] = (image_size, image_size)
    network: nn.Module = get_model(name, weights=None, **options)
    return network


def _check(name: str, stem: str, channels: int, image_size: int) -> None:
    """Checks a forward pass on the meta device."""
    try:
        with _on_meta(), torch.no_grad():
            network = _build(name, stem, channels, image_size).to("meta").eval()
            network(torch.empty(2, channels, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:  # whatever the network checks, or its layers
        raise ValueError(
            f"backbone {name} with stem {stem} does not accept images of {image_size} x {image_size} pixels "
            f"({one_line(error)}); use images of another size, or another backbone"
        ) from None


@contextmanager
def _on_meta() -> Iterator[None]:
    """Builds networks on the meta device: in milliseconds, without memory and random numbers."""
    with torch.device("meta"), _GivenValuesOnCPU():
        yield


class _GivenValuesOnCPU(TorchFunctionMode):
    """Keeps tensors of given values on the CPU, because RegNets compute the widths of their layers with them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **device | (kwargs or {}))


def _last_linear(network: nn.Module) -> tuple[str, nn.Linear] | None:
    found = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    return found[-1] if found else None


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))


def _adapt_stem(network: nn.Module, stem: str, channels: int) -> None:
    """Adapts the first convolution, and max pooling after it, to the images.

    The weights of a new convolution are sampled from the old ones, to keep their distribution, and rescaled by
    1 / sqrt(fan-in), to keep the variance of the outputs.
    """
    layers = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    path, first = layers[0]
    assert isinstance(first, nn.Conv2d)
    kernel_size, padding = first.kernel_size, first.padding
    if stem == "cifar" and max(first.stride) > 1:  # VGG's stem suits small images already
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
