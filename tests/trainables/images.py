"""Synthetic images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


def smooth_images(n: int, size: int = 16, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Returns blurred noise, uint8 [n, channels, size, size]: every image has its own colours and shapes."""
    coarse = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8).numpy()


def noise_images(n: int, size: int = 16, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Returns independent pixels, uint8 [n, channels, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)
