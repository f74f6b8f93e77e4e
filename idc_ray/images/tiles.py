"""Where tiles lie, and tiles as PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PNG_LEVEL = 4  # zlib's; 9 takes a third more time (photographs' tiles) for 0.2 % fewer bytes


def grid_count(height: int, width: int, tile: int) -> int:
    """Whole tiles of ``tile`` x ``tile`` in a grid: floor(height / tile) floor(width / tile).

    Raises:
        ValueError: ``tile`` is below 1.
    """
    if tile < 1:
        raise ValueError(f"tile is {tile}; expected at least 1")
    return (height // tile) * (width // tile)


def crop_starts(length: int, size: int, stride: int) -> list[int]:
    """Starts of crops along one side: 0, stride, 2 stride, … and a last one flush with the end.

    Every position is covered if ``stride`` is at most ``size``; starts ascend and none is there twice.

    Args:
        length: of the side, in pixels, at least ``size``.
        size: of a crop, at least 1.
        stride: between starts, at least 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if size < 1 or stride < 1 or length < size:
        raise ValueError(f"length {length}, size {size}, stride {stride}; expected length >= size >= 1 and stride >= 1")
    last = length - size
    return [*range(0, last, stride), last]


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """PNG of uint8 (H, W, 3): the same bytes every time, with one version of Pillow.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """What :func:`encode_png` was given: uint8 (H, W, 3).

    For tiles that this package wrote; images from elsewhere go through :func:`idc_ray.images.read.decode_rgb`.

    Raises:
        ValueError: a PNG, but not 8-bit RGB.
        OSError: not a PNG, or a damaged one.
    """
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.mode != "RGB":
            raise ValueError(f"the PNG's mode is {image.mode}; expected RGB")
        return np.array(image)
