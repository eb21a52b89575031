"""Loads pretrained weights from torchvision or a file and adapts them to small or grey images."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.simclr.backbones import INCEPTIONS, first_convolution, one_line


def read_weights(name: str, weights: str) -> dict[str, Tensor]:
    """Returns the state dict of torchvision's default weights if ``weights`` is ``torchvision``, else of a file.

    Raises:
        ValueError: The weights cannot be downloaded or read, or are not a state dict.
    """
    if weights == "torchvision":
        return _download(name)
    file = Path(weights)
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("contains more than tensors or is corrupt; save model.state_dict() only") from None
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise ValueError(f"cannot be read: {one_line(error)}") from None
    if not (isinstance(state, Mapping) and all(isinstance(tensor, Tensor) for tensor in state.values())):
        raise ValueError("is not a state dict of names and tensors; save model.state_dict() only")
    return dict(state)


def _download(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    default: Any = get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = default.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # not reachable, or the hash does not match
        raise ValueError(
            f"{default.url} cannot be downloaded ({one_line(error)}); download it elsewhere and set weights to "
            f"/path/to/{Path(default.url).name}"
        ) from None
    return state


def load_pretrained(network: nn.Module, state: Mapping[str, Tensor], stem: str) -> None:
    """Loads a state dict of torchvision into a network of ``build_backbone``, without the classifier.

    A first convolution that stem ``cifar`` has changed keeps its random weights. For images of one channel its weights
    are summed over the colours (as in timm). The position embedding of vision transformers is interpolated.

    Raises:
        ValueError: The state dict does not match the network, or the images have neither 1 nor 3 channels.
    """
    modules = dict(network.named_modules())
    # Files of DenseNets have old names, such as norm.1 for norm1.
    named = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): t for key, t in state.items()}
    fitted = {
        key: tensor
        for key, tensor in named.items()
        if not isinstance(modules.get(key.rpartition(".")[0]), nn.Identity)
        and not key.startswith(("aux1.", "aux2.", "AuxLogits."))
    }
    path, first = first_convolution(network)
    if (colours := fitted.get(f"{path}.weight")) is not None and colours.ndim == 4:
        if first.in_channels not in (1, colours.shape[1]):
            raise ValueError(
                f"expect images of {colours.shape[1]} channels, not {first.in_channels}; "
                f"use images of {colours.shape[1]} channels or of 1, or weights: null"
            )
        if stem == "cifar" and colours.shape[2:] != first.weight.shape[2:]:
            fitted |= {f"{path}.{key}": tensor for key, tensor in first.state_dict().items()}
        elif first.in_channels == 1:
            fitted[f"{path}.weight"] = colours.sum(1, keepdim=True)
    if "encoder.pos_embedding" in fitted and "conv_proj" in modules:
        from torchvision.models.vision_transformer import interpolate_embeddings

        fitted = interpolate_embeddings(network.image_size, network.patch_size, fitted)
    load_state(network, fitted)


def normalisation(name: str) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation [3] of pixels in [0, 1] that normalise images for torchvision's weights."""
    if name in INCEPTIONS:  # trained with pixels in [-1, 1]; torchvision converts within the network (transform_input)
        return torch.full((3,), 0.5), torch.full((3,), 0.5)
    from torchvision.models import get_model_weights

    transforms: Any = get_model_weights(name).DEFAULT.transforms()
    return torch.tensor(transforms.mean), torch.tensor(transforms.std)


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict strictly, except that ``num_batches_tracked`` may be missing.

    Raises:
        ValueError: Names or shapes differ; the message names the first one.
    """
    expected = module.state_dict()
    for key in state:
        if key not in expected:
            raise ValueError(f"do not match the network, which has no {key}")
    for key, tensor in expected.items():
        if key not in state:
            if key.endswith("num_batches_tracked"):  # files older than torch 0.4.1
                continue
            raise ValueError(f"do not match the network: {key} is missing")
        if state[key].shape != tensor.shape:
            given, own = tuple(state[key].shape), tuple(tensor.shape)
            raise ValueError(f"do not match the network: {key} has shape {given}, not {own}")
    expected.update(state)  # keeps the version numbers that some networks need and safetensors does not store
    module.load_state_dict(expected)
