"""Settings of the augmentations."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class AugmentSettings(BaseModel):
    """What is drawn for every view of every image."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    crop_area: tuple[float, float] = Field((0.2, 1.0), description="range of the crop's share of the image's area")
    crop_aspect: tuple[float, float] = Field((0.75, 4 / 3), description="range of the crop's width over its height")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation to either side, in degrees")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(0.8, ge=0, le=1, description="probability of a colour jitter")
    brightness: float = Field(0.4, ge=0, le=1, description="brightness changes by a factor in 1 -+ this")
    contrast: float = Field(0.4, ge=0, le=1, description="contrast changes by a factor in 1 -+ this")
    saturation: float = Field(0.4, ge=0, le=1, description="saturation changes by a factor in 1 -+ this")
    hue: float = Field(0.1, ge=0, le=0.5, description="hue shifts by up to this share of the colour circle")
    grayscale: float = Field(0.2, ge=0, le=1, description="probability of losing all colour")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur, standard deviation 0.1 to 2")


#: Named settings: SimCLR's for small natural images (Chen et al. 2020, B.9), and for digits, which neither mirror
#: images nor colours leave what they are.
PROFILES = {
    "natural": AugmentSettings(),
    "digits": AugmentSettings(
        crop_area=(0.4, 1.0), crop_aspect=(0.5, 2.0), rotation=20.0, flip=0.0, jitter=0.0, grayscale=0.0, blur=0.5
    ),
}
