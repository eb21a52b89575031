"""Settings of the data set: how images are read and split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from trainables.settings import Settings

DatasetName = Literal["mnist5k", "cifar10", "cifar100", "fashion_mnist", "image_folder"]


class DatasetSettings(Settings):
    """The data set. Labels are used only by the final probes."""

    name: DatasetName = Field(description="name of the data set; image_folder: your own images, see docs/images.md")
    root: Path = Field(
        Path("data"), validate_default=True, description="directory of the images, or of torchvision's files"
    )
    download: bool = Field(True, description="whether torchvision may download missing files")
    labels: Literal["auto", "none"] = Field(
        "auto", description="auto: labels of the data set (image_folder: folder names); none: unlabelled"
    )
    image_size: int = Field(
        32, ge=8, le=1024, description="image_folder: images are resized to this many pixels a side"
    )
    background: str = Field(
        "white", description="image_folder: background of transparent images, a colour name or #rrggbb"
    )
    value_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="image_folder: [black, white] of images with more than 8 bits; null: estimated from a sample",
    )
    check: Literal["headers", "pixels"] = Field(
        "headers",
        description="image_folder: files checked before training; headers: the headers of up to 10,000 files; pixels: "
        "decode all files",
    )
    limit: int | None = Field(None, ge=16, description="maximum number of training images, sampled with the seed")
    reference_images: int = Field(512, ge=16, description="held-out images of the reference loss")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction held out for the probes if there is no test set"
    )
    test_limit: int = Field(10_000, ge=1, description="maximum number of test images, sampled with the seed")
    stream: Literal["auto"] | bool = Field(
        "auto",
        description="image_folder: whether training images are decoded from disk batch by batch instead of held in "
        "memory; auto: if they need more than half of the available memory",
    )
    decoder_threads: Literal["auto"] | PositiveInt = Field(
        "auto", description="image_folder: decoding threads per worker; auto: one per core, at most 8"
    )

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path) -> Path:
        return root.expanduser().absolute()  # a run may be resumed from another directory

    @field_validator("stream")
    @classmethod
    def _check_stream(cls, stream: str | bool, info: ValidationInfo) -> str | bool:
        if stream is True and info.data.get("name", "image_folder") != "image_folder":
            raise ValueError("streaming needs an image_folder; use auto")
        return stream

    @field_validator("labels", mode="before")
    @classmethod
    def _null_means_none(cls, labels: Any) -> Any:
        return "none" if labels is None else labels

    @field_validator("background")
    @classmethod
    def _known(cls, colour: str) -> str:
        try:
            ImageColor.getrgb(colour)
        except ValueError:
            raise ValueError("use a colour name, such as white, or #rrggbb") from None
        return colour

    @field_validator("value_range")
    @classmethod
    def _check_value_range(cls, values: list[float] | None) -> list[float] | None:
        if values is not None and not values[0] < values[1]:
            raise ValueError("use [black, white] with black < white, such as [0, 4095]")
        return values
