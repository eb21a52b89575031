"""The encoder: a small residual network or a backbone of torchvision, and SimCLR's projection head on top of it."""

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
    """Images in [0, 1], float [n, C, H, W] -> representations [n, features]. ``build_encoder`` makes one."""

    def __init__(self, settings: EncoderSettings, channels: int) -> None:
        super().__init__()
        self.settings, self.channels = settings, channels

    def forward(self, images: Tensor) -> Tensor:
        """Float images in [0, 1] [n, C, H, W] -> representations [n, features].

        Raises:
            TypeError: They are no tensor of floats.
            ValueError: They have another shape.
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
        """Images -> float32 representations [n, features], in evaluation mode, on this module's device.

        Args:
            images: uint8, or floats in [0, 1] (of any precision); [n, C, H, W] or [n, H, W, C], whichever fits this
                encoder's channels, and the first if both do. A tensor, a numpy array, or what is sliced to one, such as
                a memory map: a batch at a time is read and copied to the device.
            batch_size: Images that are in the network at once.

        Returns:
            A tensor on the CPU for a tensor, else a numpy array.

        Raises:
            TypeError: They are neither uint8 nor floats.
            ValueError: They have another shape, or values outside [0, 1].
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
            ValueError: It is of another network.
        """
        load_state(self, state)


class CIFARResNet(Encoder):
    """A residual network of three stages for small images (He et al. 2016, 4.2)."""

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
    """A backbone of torchvision. What its weights take for zero mean and unit variance is part of its state."""

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
        """Loads a state dict of this encoder, or one of the whole network as torchvision has it.

        Raises:
            ValueError: It is of another network.
        """
        if state.keys() & self.state_dict().keys():
            super().load_weights(state)
            return
        load_pretrained(self.backbone, state, self.settings.stem)
        for buffer, colours in zip((self.mean, self.std), normalisation(self.settings.backbone), strict=True):
            buffer.copy_((colours if self.channels == 3 else colours.mean()).view(-1, 1, 1))


class SimCLR(nn.Module):
    """Encoder and projection head (Chen et al. 2020, section 2): the head is used in training only.

    The arguments are those of ``build_encoder``.
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
        """Images in [0, 1] [n, C, H, W] -> projections [n, projection_features], not normalised."""
        projections: Tensor = self.head(self.encoder(images))
        return projections


def build_encoder(
    settings: EncoderSettings, channels: int = 3, *, image_size: int | None = None, pretrained: bool = True
) -> Encoder:
    """An encoder with the weights that it starts from; random ones come from torch's default generator.

    Args:
        settings: Which network, and which weights.
        channels: Of the images.
        image_size: Their side in pixels. Vision transformers are made for one; others are tried with it. None: untried.
        pretrained: False leaves the weights random whatever the settings say, for one whose own are loaded next.

    Raises:
        ValueError: The backbone cannot take the images, or the weights cannot be had or do not fit it.
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
