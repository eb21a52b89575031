"""Batched versions of torchvision's colour and blur transforms, with parameters per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as torchvision's rgb_to_grayscale


def luma(x: Tensor) -> Tensor:
    """Converts RGB [n, 3, H, W] to gray [n, 1, H, W]."""
    red, green, blue = x.split(1, dim=1)
    gray: Tensor = _GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue
    return gray


def adjust(x: Tensor, change: int, factor: Tensor) -> Tensor:
    """Changes brightness (0), contrast (1), saturation (2) or hue (3) of x [n, 3, H, W] by factor [n, 1, 1, 1]."""
    if change == 3:
        return shift_hue(x, factor)
    if change == 0:
        return (x * factor).clamp_(0, 1)
    reference = luma(x)
    if change == 1:
        reference = reference.mean((2, 3), keepdim=True)
    return torch.lerp(reference.expand_as(x), x, factor.expand_as(x)).clamp_(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Shifts the HSV hue of RGB [n, 3, H, W] in [0, 1] by ``shift`` [n, 1, 1, 1], a fraction of the colour circle."""
    value, argmax = x.max(1, keepdim=True)
    chroma = value - x.min(1, keepdim=True).values
    r, g, b = x.split(1, dim=1)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        argmax == 0, (g - b) / divisor, torch.where(argmax == 1, (b - r) / divisor + 2, (r - g) / divisor + 4)
    )
    hue = sector + 6 * shift
    # HSV to RGB: f(n) = v - c max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6, n = 5, 3, 1
    k = (hue + torch.arange(5, 0, -2, device=x.device, dtype=x.dtype)[:, None, None]) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blurs x [n, C, H, W] with a Gaussian of sigma [n] pixels; the kernel spans a tenth of it (Chen et al., A)."""
    n, channels, height, width = x.shape
    radius = max(1, height // 20)
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = F.pad(x, (radius,) * 4, mode="reflect").reshape(1, n * channels, height + 2 * radius, width + 2 * radius)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    return F.conv2d(flat, kernel[:, None, None, :], groups=n * channels).reshape(x.shape)
