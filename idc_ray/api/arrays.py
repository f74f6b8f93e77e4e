"""Conversion of PIL images, arrays and tensors to 8-bit RGB arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from idc_ray.errors import BadRequest
from idc_ray.images.color import ColorProfile
from idc_ray.images.pixels import check_mode, to_rgb, upright

ImageLike = Image.Image | NDArray[np.uint8] | Tensor
"""A PIL image, uint8 (H, W, 3), or a tensor (3, H, W), uint8 or floating point in [0, 1]; RGB."""

_ORIENTATION = 0x0112  # EXIF's tag
EXPECTED = "expected a PIL image, a uint8 array (H, W, 3), or a tensor (3, H, W), uint8 or floating point in [0, 1]"


def as_rgb(image: ImageLike) -> NDArray[np.uint8]:
    """The pixels of an image: uint8 (H, W, 3), contiguous.

    A PIL image is converted as by :func:`idc_ray.images.decode_rgb`: EXIF orientation applied, transparency composited
    over white, colour profile not applied.

    Raises:
        BadRequest: wrong type, shape or range.
        RejectedImage: ``unsupported_pixels``, a PIL mode without a defined range or colours.
    """
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if not isinstance(image, np.ndarray):
        raise BadRequest(f"image is a {type(image).__name__}; {EXPECTED}")
    if image.dtype != np.uint8:
        raise BadRequest(f"image is an array of {image.dtype}; {EXPECTED}")
    _check_shape(image.shape, image.ndim == 3 and image.shape[2] == 3)
    return np.ascontiguousarray(image)


def _from_pillow(image: Image.Image) -> NDArray[np.uint8]:
    check_mode(image)
    return upright(to_rgb(image, 16, False, ColorProfile()), int(image.getexif().get(_ORIENTATION, 1)))


def _from_tensor(image: Tensor) -> NDArray[np.uint8]:
    _check_shape(tuple(image.shape), image.ndim == 3 and image.shape[0] == 3)
    if image.is_floating_point():
        low, high = (float(end) for end in torch.aminmax(image.detach()))
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise BadRequest(f"image is a tensor of {image.dtype} in [{low:g}, {high:g}]; {EXPECTED}")
        image = (image.detach().float() * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise BadRequest(f"image is a tensor of {image.dtype}; {EXPECTED}")
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def _check_shape(shape: tuple[Any, ...], fits: bool) -> None:
    if not fits or 0 in shape:
        raise BadRequest(f"image has shape {shape}; {EXPECTED}")
