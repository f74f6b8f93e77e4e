"""MATLAB-style bicubic resizing, the degradation that super-resolution papers mean by "bicubic", and other filters.

Keys' cubic kernel with a = -0.5, stretched when shrinking (antialiasing), rows first, rounded to
8 bits after each dimension, border pixels repeated. With exactly these rules the published
low-resolution files of Set5 and Set14 (x2 and x4) come out bit for bit; a symmetric border or one
rounding at the end does not reproduce them, nor does Pillow's ``BICUBIC``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel, a = -0.5 (Keys 1981, eq. 4), non-zero on [-2, 2]."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return near * (x <= 1) + far * ((x > 1) & (x <= 2))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3)


#: Filters and their widths.
_FILTERS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "area": (lambda x: ((x >= -0.5) & (x < 0.5)).astype(np.float64), 1.0),
    "bilinear": (lambda x: np.maximum(0.0, 1 - np.abs(x)), 2.0),
    "bicubic": (_cubic, 4.0),
    "lanczos": (_lanczos, 6.0),
}


@lru_cache(maxsize=64)
def taps(
    length: int, out_length: int, scale: float, name: str = "bicubic", antialias: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Source indices and weights, both (taps, out_length), for one dimension; each column of weights sums to 1."""
    kernel, support = _FILTERS[name]
    shrink = min(scale, 1.0) if antialias or name == "area" else 1.0
    width = support / shrink
    centre = (np.arange(out_length) + 0.5) / scale - 0.5
    index = np.floor(centre - width / 2).astype(np.int64) + 1 + np.arange(math.ceil(width) + 1)[:, None]
    weight = kernel((centre - index) * shrink)
    weight /= weight.sum(axis=0)
    used = np.any(weight != 0, axis=1)
    index, weight = index[used].clip(0, length - 1), weight[used]
    index.setflags(write=False)
    weight.setflags(write=False)
    return index, weight


def _resize_rows(plane: NDArray[np.uint8], length: int, scale: float, name: str, antialias: bool) -> NDArray[np.uint8]:
    index, weight = taps(plane.shape[0], length, scale, name, antialias)
    out = np.zeros((length, plane.shape[1]))
    for rows, w in zip(index, weight, strict=True):
        out += w[:, None] * plane[rows]
    return np.floor(np.clip(out, 0, 255) + 0.5).astype(np.uint8)


def resample(
    image: NDArray[np.uint8], size: tuple[int, int], name: str = "bicubic", antialias: bool = True
) -> NDArray[np.uint8]:
    """Resize uint8 (H, W[, C]) to ``size``, (height, width).

    Args:
        image: the image.
        size: of the result.
        name: filter: area, bilinear, bicubic or lanczos (three lobes).
        antialias: stretch the filter when shrinking; area always is.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"image has dtype {image.dtype}; expected uint8 (0 to 255)")
    planes = image[..., None] if image.ndim == 2 else image
    (height, width), (down, across) = size, (size[0] / image.shape[0], size[1] / image.shape[1])
    # One plane at a time: the float64 work space is that of one channel.
    resized = [
        _resize_rows(_resize_rows(planes[..., c], height, down, name, antialias).T, width, across, name, antialias).T
        for c in range(planes.shape[2])
    ]
    return resized[0] if image.ndim == 2 else np.stack(resized, axis=-1)


def downscale(hr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Low-resolution version of an image whose sides are multiples of ``scale``.

    Args:
        hr: uint8 (H, W) or (H, W, C).
        scale: integer factor, at least 1.

    Returns:
        uint8 (H / scale, W / scale[, C]).

    Raises:
        ValueError: a side is not a multiple of ``scale`` (mod-crop first).
    """
    if scale < 1 or hr.shape[0] % scale or hr.shape[1] % scale:
        raise ValueError(f"{hr.shape[1]} x {hr.shape[0]} pixels cannot be shrunk by {scale}; mod-crop the image first")
    return resample(hr, (hr.shape[0] // scale, hr.shape[1] // scale))


def upscale(lr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Bicubic interpolation by an integer factor: uint8 (H, W[, C]) to uint8 (scale H, scale W[, C])."""
    if scale < 1:
        raise ValueError(f"scale is {scale}; expected an integer of at least 1")
    return resample(lr, (lr.shape[0] * scale, lr.shape[1] * scale))
