"""SimCLR's augmentations for a whole batch at once, with a fresh draw for every image, on the images' device.

The distributions are torchvision's (``RandomResizedCrop``, ``RandomHorizontalFlip``, ``ColorJitter``,
``RandomGrayscale``, ``GaussianBlur``); torchvision itself draws one set of parameters for a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from trainables.simclr.pixels import adjust, blur, luma, shift_hue


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
    "digits": AugmentSettings(crop_area=(0.4, 1.0), rotation=15.0, flip=0.0, jitter=0.0, grayscale=0.0),
}


@dataclass(frozen=True)
class Draw:
    """The random parameters of n views, on the CPU; ``draw[rows]`` are those of some of them."""

    centre: Tensor  # [n, 2] of the crop, x and y, in -1 ... 1
    extent: Tensor  # [n, 2] of the crop as a share of the image's width and height; negative width: flipped
    angle: Tensor  # [n] radians
    order: Tensor  # [n, 4] the order of brightness (0), contrast (1), saturation (2), hue (3); -1: no jitter
    factor: Tensor  # [n, 4] of each of the four
    gray: Tensor  # [n] bool
    sigma: Tensor  # [n] of the blur in pixels; 0: none

    def __getitem__(self, rows: slice | Tensor) -> Draw:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def packed(self) -> Tensor:
        """All of it in one tensor [n, 16], for ``Augment.views``: it crosses to a device in a single copy."""
        turned = self.factor.gather(1, self.order.clamp(min=0))  # in the order of the changes
        rest = torch.stack([self.gray.float(), self.sigma], dim=1)
        return torch.cat([_affine(self).flatten(1), self.order.float(), turned, rest], dim=1)


class Augment:
    """Two steps: ``draw`` the parameters of a batch (on the CPU), ``apply`` them to images on any device.

    A call does both. Workers that share a batch draw for the whole of it and apply their own rows, so that what
    happens to an image does not depend on the number of workers.

    Args:
        size: Height and width of the views, in pixels.
        profile: A name in ``PROFILES``, or settings of one's own.

    Raises:
        ValueError: The profile's name is unknown.
    """

    def __init__(self, size: int, profile: str | AugmentSettings = "natural") -> None:
        if isinstance(profile, str) and profile not in PROFILES:
            raise ValueError(f"augmentation profile {profile!r} is unknown: use one of {', '.join(PROFILES)}")
        self.size = size
        self.settings = PROFILES[profile] if isinstance(profile, str) else profile
        #: What ``apply`` does anywhere but on a CPU; ``torch.compile`` makes it faster.
        self.views: Callable[[Tensor, Tensor], Tensor] = self._apply_to_all

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 images [n, C, H, W] -> float views in [0, 1] [n, C, size, size]."""
        return self.apply(images, self.draw(len(images), images.shape[-2:], generator))

    def draw(self, n: int, image_size: tuple[int, ...], generator: torch.Generator) -> Draw:
        """Parameters for ``n`` views of images of ``image_size`` (height, width), from a CPU generator."""
        s = self.settings

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return torch.rand(shape, generator=generator) * (high - low) + low

        centre, extent = self._draw_crops(n, image_size[0], image_size[1], uniform)
        extent[:, 0] *= torch.where(uniform(n) < s.flip, -1.0, 1.0)
        order = uniform(n, 4).argsort(dim=1)
        order[uniform(n) >= s.jitter] = -1
        spread = torch.tensor([s.brightness, s.contrast, s.saturation, s.hue])
        factor = uniform(n, 4, low=-1.0) * spread + torch.tensor([1.0, 1.0, 1.0, 0.0])
        return Draw(
            centre=centre,
            extent=extent,
            angle=uniform(n, low=-1.0) * math.radians(s.rotation),
            order=order,
            factor=factor,
            gray=uniform(n) < s.grayscale,
            sigma=torch.where(uniform(n) < s.blur, uniform(n, low=0.1, high=2.0), 0.0),
        )

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """uint8 images [n, C, H, W], parameters of n views -> float views in [0, 1] [n, C, size, size]."""
        if images.device.type == "cpu":
            return self._apply_to_some(images, draw)
        packed = draw.packed()
        packed = packed.pin_memory() if images.is_cuda else packed
        return self.views(images, packed.to(images.device, non_blocking=True))

    def _apply_to_all(self, images: Tensor, packed: Tensor) -> Tensor:
        """The way of a GPU: images and ``Draw.packed`` on the device -> views, channels-last.

        Every view goes through every change, and keeps it or not: no shape depends on what was drawn, so that it can be
        compiled and captured, and nothing waits for the device.
        """
        theta, order, factor, rest = packed.split([6, 4, 4, 2], dim=1)
        views = self._crop(images.float() / 255, theta.view(-1, 2, 3))
        if views.shape[1] == 3:
            for turn in range(4):
                change, by = order[:, turn, None, None, None], factor[:, turn, None, None, None]
                gray = luma(views)
                # Brightness, contrast and saturation blend with black, the mean gray and the image's own gray.
                towards = torch.where(change == 1, gray.mean((2, 3), keepdim=True), gray * (change == 2))
                blended = (towards + by * (views - towards)).clamp(0, 1)
                changed = torch.where(change == 3, shift_hue(views, by), blended)
                views = torch.where(change >= 0, changed, views)
            views = torch.where(rest[:, 0, None, None, None] > 0, luma(views), views)
        if self.settings.blur:
            sigma = rest[:, 1]
            blurred = blur(views, sigma.clamp(min=0.1))
            views = torch.where(sigma[:, None, None, None] > 0, blurred, views)
        return views.contiguous(memory_format=torch.channels_last)

    def _apply_to_some(self, images: Tensor, draw: Draw) -> Tensor:
        """The way of a CPU: no view is computed that does not change."""
        views = self._crop(images.float() / 255, _affine(draw))
        if views.shape[1] == 3:
            for turn in range(4):  # ColorJitter: each view's four changes in that view's own order
                for change in range(4):
                    if len(rows := _where(draw.order[:, turn] == change)):
                        views[rows] = adjust(views[rows], change, draw.factor[rows, change, None, None, None])
            if len(rows := _where(draw.gray)):
                views[rows] = luma(views[rows]).expand(-1, 3, -1, -1)
        if len(rows := _where(draw.sigma > 0)):
            views[rows] = blur(views[rows], draw.sigma[rows])
        return views

    def _draw_crops(self, n: int, height: int, width: int, uniform) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        """RandomResizedCrop.get_params for n images: ten tries each, the first that fits, else the whole image."""
        low, high = self.settings.crop_aspect
        area = height * width * uniform(n, 10, low=self.settings.crop_area[0], high=self.settings.crop_area[1])
        aspect = uniform(n, 10, low=math.log(low), high=math.log(high)).exp()
        w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.float().argmax(dim=1, keepdim=True)
        found = fits.any(dim=1)
        w = torch.where(found, w.gather(1, first).squeeze(1), width)
        h = torch.where(found, h.gather(1, first).squeeze(1), height)
        left, top = (uniform(n) * (width - w + 1)).floor(), (uniform(n) * (height - h + 1)).floor()
        centre = torch.stack([(2 * left + w) / width - 1, (2 * top + h) / height - 1], dim=1)
        return centre, torch.stack([w / width, h / height], dim=1)

    def _crop(self, images: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, [len(images), images.shape[1], self.size, self.size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _where(condition: Tensor) -> Tensor:
    return condition.nonzero().squeeze(1)


def _affine(draw: Draw) -> Tensor:
    """Crop, rotation and flip are one affine map [n, 2, 3], hence one bilinear resampling."""
    cos, sin = draw.angle.cos(), draw.angle.sin()
    width, height = draw.extent.unbind(1)
    x = torch.stack([width * cos, -height * sin, draw.centre[:, 0]], dim=1)
    y = torch.stack([width * sin, height * cos, draw.centre[:, 1]], dim=1)
    return torch.stack([x, y], dim=1)
