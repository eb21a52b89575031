"""SimCLR's augmentations for whole batches, with parameters per image, on the images' device.

The distributions are those of torchvision (``RandomResizedCrop``, ``RandomHorizontalFlip``, ``ColorJitter``,
``RandomGrayscale``, ``GaussianBlur``), which draws one set of parameters for a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainables.settings import PROFILES, AugmentSettings
from trainables.simclr.color import adjust, blur, luma, shift_hue

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Draw:
    """Random parameters of n views, on the CPU. ``draw[rows]`` selects views."""

    centre: Tensor  # [n, 2] x and y of the crop's centre, in -1 ... 1
    extent: Tensor  # [n, 2] width and height of the crop relative to the image; negative width: flipped
    angle: Tensor  # [n] rotation in radians
    order: Tensor  # [n, 4] order of brightness (0), contrast (1), saturation (2), hue (3); -1: no jitter
    factor: Tensor  # [n, 4] factors of these four
    gray: Tensor  # [n] bool
    sigma: Tensor  # [n] standard deviation of the blur in pixels; 0: no blur

    def __getitem__(self, rows: slice | Tensor) -> Draw:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def packed(self) -> Tensor:
        """Returns all parameters in one tensor [n, 16] for ``Augment.views``, so that one copy moves them to a GPU."""
        order, factor = self.order.numpy(), self.factor.numpy()
        turned = np.take_along_axis(factor, np.maximum(order, 0), 1)  # in the order of the changes
        rest = self.gray.numpy()[:, None], self.sigma.numpy()[:, None]
        return torch.from_numpy(np.concatenate([_affine(self), order, turned, *rest], axis=1, dtype=np.float32))


class Augment:
    """Augments images: ``draw`` returns random parameters (on the CPU), ``apply`` applies them on any device.

    A call does both. Every worker draws the parameters of the global batch and applies those of its shard, so that the
    views do not depend on the number of workers.

    Args:
        size: Height and width of the views, in pixels.
        profile: Name of a profile in ``PROFILES``, or settings.

    Raises:
        ValueError: The name of the profile is unknown.
    """

    def __init__(self, size: int, profile: str | AugmentSettings = "natural") -> None:
        if isinstance(profile, str) and profile not in PROFILES:
            raise ValueError(f"augmentation profile {profile!r} is unknown: use one of {', '.join(PROFILES)}")
        self.size = size
        self.settings = PROFILES[profile] if isinstance(profile, str) else profile
        #: What ``apply`` calls on a GPU; may be replaced by a compiled version.
        self.views: Callable[[Tensor, Tensor], Tensor] = self._apply_to_all

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Maps uint8 images [n, C, H, W] to float views in [0, 1] [n, C, size, size]."""
        return self.apply(images, self.draw(len(images), images.shape[-2:], generator))

    def draw(self, n: int, image_size: tuple[int, ...], generator: torch.Generator) -> Draw:
        """Draws parameters of ``n`` views of images of ``image_size`` (height, width) from a CPU generator."""
        s = self.settings
        # numpy, because torch's overhead per operation dominates for so few numbers.
        areas, aspects, place, (flip, jitter, angle, gray, blur, sigma), order, factor = np.split(
            torch.rand((36, n), generator=generator).numpy(), [10, 20, 22, 28, 32]
        )
        centre, extent = self._crops(areas, aspects, place, image_size[0], image_size[1])
        extent[:, 0] *= np.where(flip < s.flip, -1, 1)
        orders = order.T.argsort(axis=1)
        orders[jitter >= s.jitter] = -1
        spread = np.array([s.brightness, s.contrast, s.saturation, s.hue], np.float32)
        factors = _between(-spread, spread, factor.T) + np.array([1, 1, 1, 0], np.float32)
        most = math.radians(s.rotation)
        return Draw(
            centre=torch.from_numpy(centre),
            extent=torch.from_numpy(extent),
            angle=torch.from_numpy(_between(-most, most, angle)),
            order=torch.from_numpy(orders),
            factor=torch.from_numpy(factors),
            gray=torch.from_numpy(gray < s.grayscale),
            sigma=torch.from_numpy(_between(0.1, 2.0, sigma) * (blur < s.blur)),
        )

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Maps uint8 images [n, C, H, W] and parameters of n views to float views in [0, 1] [n, C, size, size]."""
        if images.device.type == "cpu":
            return self._apply_to_some(images, draw)
        packed = draw.packed()
        packed = packed.pin_memory() if images.is_cuda else packed
        return self.views(images, packed.to(images.device, non_blocking=True))

    def _apply_to_all(self, images: Tensor, packed: Tensor) -> Tensor:
        """Maps images and ``Draw.packed`` on a GPU to views in channels-last order.

        All changes are computed for all views and selected afterwards. No shape depends on the parameters, so that the
        function can be compiled and captured as a CUDA graph, without synchronisation.
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
        """Maps images and parameters on a CPU to views. Changes are computed only for the views that need them."""
        views = self._crop(images.float() / 255, torch.from_numpy(_affine(draw)).view(-1, 2, 3))
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

    def _crops(
        self, areas: _Floats, aspects: _Floats, place: _Floats, height: int, width: int
    ) -> tuple[_Floats, _Floats]:
        """Returns ``Draw.centre`` and ``Draw.extent`` as RandomResizedCrop does: the first of ten tries that fits.

        Areas and aspect ratios of the tries [10, n] and the position of the crop [2, n] are random numbers in 0 ... 1.
        """
        low, high = self.settings.crop_aspect
        area = height * width * _between(*self.settings.crop_area, areas)
        aspect = np.exp(_between(math.log(low), math.log(high), aspects))
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.argmax(axis=0), np.arange(fits.shape[1])
        found = fits[first]
        w, h = np.where(found, w[first], np.float32(width)), np.where(found, h[first], np.float32(height))
        left, top = np.floor(place * (np.stack([width - w, height - h]) + 1))
        centre = np.stack([(2 * left + w) / width - 1, (2 * top + h) / height - 1], axis=1)
        return centre, np.stack([w / width, h / height], axis=1)

    def _crop(self, images: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, [len(images), images.shape[1], self.size, self.size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _where(condition: Tensor) -> Tensor:
    return condition.nonzero().squeeze(1)


def _between(low: float | _Floats, high: float | _Floats, fraction: _Floats) -> _Floats:
    return low + (high - low) * fraction


def _affine(draw: Draw) -> _Floats:
    """Returns crop, rotation and flip as one affine map per view, 2 x 3 matrices [n, 6]."""
    cos, sin = np.cos(draw.angle.numpy()), np.sin(draw.angle.numpy())
    (width, height), (x, y) = draw.extent.numpy().T, draw.centre.numpy().T
    return np.stack([width * cos, -height * sin, x, width * sin, height * cos, y], axis=1)
