"""Settings of the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from trainables.settings.base import Settings


class EncoderSettings(Settings):
    """Settings of the backbone, its initial weights and the projection head."""

    backbone: str = Field("cifar_resnet", description="cifar_resnet, or a classification network of torchvision.models")
    stem: Literal["cifar", "imagenet"] = Field(
        "cifar", validate_default=True, description="cifar: keeps the resolution of small images; torchvision only"
    )
    weights: str | None = Field(None, description="null: random; torchvision: default weights; or a file")
    # Below 8 channels oneDNN (torch 2.15, channels_last on a CPU) corrupts the heap in the strided 1x1 shortcut.
    width: int = Field(
        16, ge=8, le=1024, description="cifar_resnet: channels of the first of 3 stages; doubled per stage"
    )
    depth: int = Field(3, ge=1, le=64, description="cifar_resnet: blocks per stage, of 2 convolutions each")
    projection_hidden: int = Field(64, ge=1, description="width of the projection head's hidden layer")
    projection_features: int = Field(32, ge=2, description="dimensions of the projections")

    @field_validator("backbone")
    @classmethod
    def _known(cls, backbone: str) -> str:
        if backbone != "cifar_resnet":
            _describe(backbone)
        return backbone

    @field_validator("stem")
    @classmethod
    def _supported_stem(cls, stem: str, info: ValidationInfo) -> str:
        backbone = info.data.get("backbone", "cifar_resnet")  # missing if it is invalid
        if stem == "cifar" and backbone != "cifar_resnet" and _describe(backbone).patches:
            raise ValueError(f"{backbone} splits images into patches; use stem: imagenet")
        return stem

    @field_validator("weights")
    @classmethod
    def _absolute_path(cls, weights: str | None, info: ValidationInfo) -> str | None:
        if weights == "torchvision" and info.data.get("backbone") == "cifar_resnet":
            raise ValueError("torchvision has no weights of cifar_resnet; use null or a file")
        if weights is None or weights == "torchvision":
            return weights
        if Path(weights).suffix not in (".safetensors", ".pt", ".pth"):
            raise ValueError("use null, torchvision, or a file named *.safetensors, *.pt or *.pth")
        return str(Path(weights).expanduser().absolute())  # workers have other working directories

    @property
    def features(self) -> int:
        """Dimensions of the representation: channels of the last stage, or inputs of the removed classifier."""
        return 4 * self.width if self.backbone == "cifar_resnet" else _describe(self.backbone).features


def _describe(backbone: str) -> Any:
    from trainables.simclr.backbones import describe  # torchvision takes seconds to import

    return describe(backbone)
