"""Settings of the augmentations."""

from __future__ import annotations

from pydantic import Field

from trainables.settings.base import Settings


class AugmentSettings(Settings):
    """Distributions of the augmentation parameters, which are drawn for every view."""

    crop_area: tuple[float, float] = Field((0.2, 1.0), description="range of the crop's area relative to the image")
    crop_aspect: tuple[float, float] = Field((0.75, 4 / 3), description="range of the aspect ratio (width / height)")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation in either direction, in degrees")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(0.8, ge=0, le=1, description="probability of a colour jitter")
    brightness: float = Field(0.4, ge=0, le=1, description="brightness factor is in 1 -+ this")
    contrast: float = Field(0.4, ge=0, le=1, description="contrast factor is in 1 -+ this")
    saturation: float = Field(0.4, ge=0, le=1, description="saturation factor is in 1 -+ this")
    hue: float = Field(0.1, ge=0, le=0.5, description="largest hue shift, as a fraction of the colour circle")
    grayscale: float = Field(0.2, ge=0, le=1, description="probability of conversion to grayscale")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur, standard deviation 0.1 to 2")


#: Profiles: SimCLR's settings for small natural images (Chen et al. 2020, B.9), and settings for digits without flips
#: and colour changes.
PROFILES = {
    "natural": AugmentSettings(),
    "digits": AugmentSettings(
        crop_area=(0.4, 1.0), crop_aspect=(0.5, 2.0), rotation=20.0, flip=0.0, jitter=0.0, grayscale=0.0, blur=0.5
    ),
}
