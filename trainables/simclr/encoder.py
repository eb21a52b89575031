"""Encoders (a small residual network or a torchvision backbone) and SimCLR's projection head."""

from __future__ import annotations

from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.settings import EncoderSettings
from trainables.simclr.backbones import build_backbone
from trainables.simclr.batchnorm import GlobalBatchNorm2d
from trainables.simclr.inputs import ArrayOfImages, as_floats, check_images, has_channels_last
from trainables.simclr.pretrained import load_pretrained, load_state, normalisation, read_weights


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = GlobalBatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = GlobalBatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            conv = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, GlobalBatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class Encoder(nn.Module):
    """Maps float images in [0, 1] [n, C, H, W] to representations [n, features]. See ``build_encoder``."""

    def __init__(self, settings: EncoderSettings, channels: int) -> None:
        super().__init__()
        self.settings, self.channels = settings, channels

    def forward(self, images: Tensor) -> Tensor:
        """Maps float images in [0, 1] [n, C, H, W] to representations [n, features].

        Raises:
            TypeError: ``images`` is not a floating-point tensor.
            ValueError: ``images`` has another shape.
        """
        check_images(images, self.channels)
        return self._represent(images)

    def _represent(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    @overload
    def embed(self, images: Tensor, batch_size: int = 512) -> Tensor: ...

    @overload
    def embed(self, images: ArrayOfImages, batch_size: int = 512) -> NDArray[np.float32]: ...

    @torch.no_grad()
    def embed(self, images: Tensor | ArrayOfImages, batch_size: int = 512) -> Tensor | NDArray[np.float32]:
        """Returns float32 representations [n, features], computed in evaluation mode on this module's device.

        Args:
            images: uint8, or floats in [0, 1]; [n, C, H, W] or [n, H, W, C], whichever matches the encoder's channels
                (the first if both do). A tensor, a numpy array, or an object whose slices are arrays, such as a memory
                map. One batch at a time is read and copied to the device.
            batch_size: Images in the network at once.

        Returns:
            A tensor on the CPU if ``images`` is a tensor, else a numpy array.

        Raises:
            TypeError: ``images`` is neither uint8 nor floating point.
            ValueError: ``images`` has another shape or values outside [0, 1].
        """
        channels_last = has_channels_last(images, self.channels)
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        try:
            parts = [
                self(as_floats(images[start : start + batch_size], channels_last, device)).float().cpu()
                for start in range(0, len(images), batch_size)
            ]
        finally:
            self.train(was_training)
        representations = torch.cat(parts) if parts else torch.empty(0, self.settings.features)
        return representations if isinstance(images, Tensor) else representations.numpy()

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Loads a state dict of this encoder.

        Raises:
            ValueError: The state dict does not match the network.
        """
        load_state(self, state)


class CIFARResNet(Encoder):
    """Residual network of three stages for small images (He et al. 2016, 4.2)."""

    def __init__(self, settings: EncoderSettings, channels: int) -> None:
        super().__init__(settings, channels)
        width = settings.width
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False), GlobalBatchNorm2d(width), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        channels_in = width
        for stage in range(3):
            for block in range(settings.depth):
                channels_out = width * 2**stage
                blocks.append(_Block(channels_in, channels_out, stride=2 if stage > 0 and block == 0 else 1))
                channels_in = channels_out
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _represent(self, images: Tensor) -> Tensor:
        x: Tensor = self.blocks(self.stem((images - 0.5) * 4.0))  # roughly zero mean and unit variance
        return x.mean((2, 3))


class TorchvisionEncoder(Encoder):
    """Torchvision backbone. The mean and standard deviation that normalise its inputs are part of its state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: EncoderSettings, channels: int, image_size: int | None) -> None:
        super().__init__(settings, channels)
        self.backbone = build_backbone(settings.backbone, stem=settings.stem, channels=channels, image_size=image_size)
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((channels, 1, 1), 0.25))

    def _represent(self, images: Tensor) -> Tensor:
        representations: Tensor = self.backbone((images - self.mean) / self.std)
        return representations

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Loads a state dict of this encoder or of torchvision's network with classifier.

        Raises:
            ValueError: The state dict does not match the network.
        """
        if state.keys() & self.state_dict().keys():
            super().load_weights(state)
            return
        load_pretrained(self.backbone, state, self.settings.stem)
        for buffer, colours in zip((self.mean, self.std), normalisation(self.settings.backbone), strict=True):
            buffer.copy_((colours if self.channels == 3 else colours.mean()).view(-1, 1, 1))


class SimCLR(nn.Module):
    """Encoder with a projection head (Chen et al. 2020, section 2). The head is used in training only.

    See ``build_encoder`` for the arguments.
    """

    def __init__(
        self, settings: EncoderSettings, channels: int, *, image_size: int | None = None, pretrained: bool = True
    ) -> None:
        super().__init__()
        self.encoder: Encoder = build_encoder(settings, channels, image_size=image_size, pretrained=pretrained)
        self.head = nn.Sequential(
            nn.Linear(settings.features, settings.projection_hidden),
            nn.ReLU(inplace=True),
            nn.Linear(settings.projection_hidden, settings.projection_features),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps images in [0, 1] [n, C, H, W] to projections [n, projection_features], not normalised."""
        projections: Tensor = self.head(self.encoder(images))
        return projections


def build_encoder(
    settings: EncoderSettings, channels: int = 3, *, image_size: int | None = None, pretrained: bool = True
) -> Encoder:
    """Builds an encoder with its initial weights. Random weights are drawn from torch's default generator.

    Args:
        settings: Network and initial weights.
        channels: Channels of the images.
        image_size: Height and width of the images in pixels. Vision transformers are built for it; other backbones are
            checked with it. None: no check.
        pretrained: Whether to load the weights that the settings name. False if other weights are loaded afterwards.

    Raises:
        ValueError: The backbone does not accept the images, or the weights cannot be loaded.
    """
    if settings.backbone == "cifar_resnet":
        encoder: Encoder = CIFARResNet(settings, channels)
    else:
        encoder = TorchvisionEncoder(settings, channels, image_size)
    if pretrained and settings.weights is not None:
        try:
            encoder.load_weights(read_weights(settings.backbone, settings.weights))
        except ValueError as error:
            raise ValueError(f"weights {settings.weights}: {error}") from None
    return encoder
