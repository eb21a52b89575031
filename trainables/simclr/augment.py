"""SimCLR's augmentations for a whole batch at once, with a fresh draw for every image, on the images' device.

The distributions are torchvision's (``RandomResizedCrop``, ``RandomHorizontalFlip``, ``ColorJitter``,
``RandomGrayscale``, ``GaussianBlur``); torchvision itself draws one set of parameters for a whole batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

_GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as torchvision's rgb_to_grayscale


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
        # Which rows change is known on the CPU, and all of it crosses to the device in two copies: no wait for it.
        chosen = [draw.order[:, turn] == change for turn in range(4) for change in range(4)]
        *changed, gray, blurred = _send(
            [c.nonzero().squeeze(1) for c in (*chosen, draw.gray, draw.sigma)], images.device
        )
        theta, factor, sigma = _send([_affine(draw), draw.factor, draw.sigma], images.device)

        views = self._crop(images.float() / 255, theta)
        if views.shape[1] == 3:
            for turn, rows in enumerate(changed):  # ColorJitter: each view's four changes in that view's own order
                if len(rows):
                    change = turn % 4
                    views[rows] = _change(views[rows], change, factor[rows, change, None, None, None])
            if len(gray):
                views[gray] = _luma(views[gray]).expand(-1, 3, -1, -1)
        if len(blurred):
            views[blurred] = _blur(views[blurred], sigma[blurred])
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


def _send(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors of one type to the device, in a single copy that the host does not wait for."""
    if device.type == "cpu":
        return tensors
    packed = torch.cat([tensor.flatten() for tensor in tensors]).pin_memory().to(device, non_blocking=True)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _affine(draw: Draw) -> Tensor:
    """Crop, rotation and flip are one affine map [n, 2, 3], hence one bilinear resampling."""
    cos, sin = draw.angle.cos(), draw.angle.sin()
    width, height = draw.extent.unbind(1)
    x = torch.stack([width * cos, -height * sin, draw.centre[:, 0]], dim=1)
    y = torch.stack([width * sin, height * cos, draw.centre[:, 1]], dim=1)
    return torch.stack([x, y], dim=1)


def _luma(x: Tensor) -> Tensor:
    """RGB [n, 3, H, W] -> gray [n, 1, H, W]"""
    red, green, blue = x.split(1, dim=1)
    gray: Tensor = _GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue
    return gray


def _change(x: Tensor, change: int, factor: Tensor) -> Tensor:
    """Brightness (0), contrast (1), saturation (2) or hue (3) of x [n, 3, H, W] by factor [n, 1, 1, 1]."""
    if change == 3:
        return _shift_hue(x, factor)
    if change == 0:
        return (x * factor).clamp_(0, 1)
    reference = _luma(x)
    if change == 1:
        reference = reference.mean((2, 3), keepdim=True)
    return torch.lerp(reference.expand_as(x), x, factor.expand_as(x)).clamp_(0, 1)


def _shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of RGB [n, 3, H, W] in [0, 1] by ``shift`` [n, 1, 1, 1] of the circle, in HSV."""
    value, argmax = x.max(1, keepdim=True)
    chroma = value - x.min(1, keepdim=True).values
    r, g, b = x.split(1, dim=1)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        argmax == 0, (g - b) / divisor, torch.where(argmax == 1, (b - r) / divisor + 2, (r - g) / divisor + 4)
    )
    hue = sector + 6 * shift
    # HSV to RGB without cases: f(n) = v - c max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6, n = 5, 3, 1
    k = (hue + torch.arange(5, 0, -2, device=x.device, dtype=x.dtype)[:, None, None]) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of x [n, C, H, W] by sigma [n] pixels; the kernel spans a tenth of the image (Chen et al., A)."""
    n, channels, height, width = x.shape
    radius = max(1, height // 20)
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = F.pad(x, (radius,) * 4, mode="reflect").reshape(1, n * channels, height + 2 * radius, width + 2 * radius)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    return F.conv2d(flat, kernel[:, None, None, :], groups=n * channels).reshape(x.shape)
