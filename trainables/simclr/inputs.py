"""Checks the images passed to an encoder and converts them to floats in [0, 1] with channels first."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_ROUNDING = 1e-3  # tolerance beyond [0, 1], for half precision and interpolation


class ArrayOfImages(Protocol):
    """A numpy array, or an object whose slices are arrays: a memory map, an HDF5 data set, image files."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, some: slice, /) -> Any: ...


def check_images(images: Tensor, channels: int) -> None:
    """Checks type and shape of an encoder's input. Values are not checked, because that would synchronise a GPU.

    Raises:
        TypeError: ``images`` is not a floating-point tensor.
        ValueError: ``images`` is not [n, channels, H, W].
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"encoder(images) takes a tensor of floats in [0, 1], not {kind}: use encoder.embed(images), which takes "
            f"uint8 and numpy arrays too, or encoder(images.float() / 255)"
        )
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"encoder(images) takes [n, {channels}, height, width], not {list(images.shape)}; encoder.embed(images) "
            f"takes [n, height, width, {channels}] too"
        )


def has_channels_last(images: Tensor | ArrayOfImages, channels: int) -> bool:
    """Returns whether images are [n, H, W, channels] and not [n, channels, H, W]. If both match, returns False.

    Raises:
        TypeError: ``images`` is not an array.
        ValueError: ``images`` has neither shape.
    """
    if not hasattr(images, "shape"):
        raise TypeError(
            f"images are a {type(images).__name__}: pass a tensor or a numpy array, such as np.stack(images)"
        )
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1] == channels:
        return False
    if len(shape) == 4 and shape[3] == channels:
        return True
    hint = "; one image is images[None]" if len(shape) == 3 and channels in (shape[0], shape[2]) else ""
    raise ValueError(
        f"images of shape {list(shape)}: pass [n, {channels}, height, width] or [n, height, width, {channels}]{hint}"
    )


def as_floats(images: Any, channels_last: bool, device: torch.device) -> Tensor:
    """Moves a batch to the device and converts it to float32 in [0, 1], [n, C, H, W].

    Raises:
        TypeError: ``images`` is neither uint8 nor floating point.
        ValueError: Values are outside [0, 1] or not finite.
    """
    if not isinstance(images, Tensor):
        array = np.asarray(images)
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise TypeError(_of_wrong_type(array.dtype))
        images = torch.from_numpy(np.array(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32))
    batch: Tensor = images.to(device)
    batch = batch.permute(0, 3, 1, 2) if channels_last else batch
    if batch.dtype == torch.uint8:
        return batch.float() / 255
    if not batch.is_floating_point():
        raise TypeError(_of_wrong_type(batch.dtype))
    batch = batch.float()
    low, high = batch.aminmax()
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also true for NaN
        way = "do not normalise them, the encoder does"
        if not (low.isfinite() and high.isfinite()):
            way = "replace NaN and infinite values"
        elif low >= 0 and 1 < high <= 255:
            way = "divide by 255 or pass uint8"
        raise ValueError(f"float images from {float(low):g} to {float(high):g} must be in [0, 1]: {way}")
    return batch


def _of_wrong_type(dtype: Any) -> str:
    return f"images of type {dtype}: pass uint8 in 0 to 255 or floats in [0, 1]"
