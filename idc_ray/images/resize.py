"""MATLAB-style bicubic resizing: the degradation that super-resolution papers mean by "bicubic".

Keys' cubic kernel with a = -0.5, stretched when shrinking (antialiasing), rows first, rounded to
8 bits after each dimension, border pixels repeated. With exactly these rules the published
low-resolution files of Set5 and Set14 (x2 and x4) come out bit for bit; a symmetric border or one
rounding at the end does not reproduce them, nor does Pillow's ``BICUBIC``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["downscale", "taps", "upscale"]


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel, a = -0.5 (Keys 1981, eq. 4), non-zero on [-2, 2]."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return near * (x <= 1) + far * ((x > 1) & (x <= 2))


@lru_cache(maxsize=64)
def taps(length: int, out_length: int, scale: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Source indices and weights, both (taps, out_length), for one dimension; each column of weights sums to 1."""
    shrink = min(scale, 1.0)
    width = 4.0 / shrink
    centre = (np.arange(out_length) + 0.5) / scale - 0.5
    index = np.floor(centre - width / 2).astype(np.int64) + 1 + np.arange(math.ceil(width) + 1)[:, None]
    weight = _cubic((centre - index) * shrink)
    weight /= weight.sum(axis=0)
    used = np.any(weight != 0, axis=1)
    index, weight = index[used].clip(0, length - 1), weight[used]
    index.setflags(write=False)
    weight.setflags(write=False)
    return index, weight


def _resize_rows(plane: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    out_length = round(plane.shape[0] * scale)
    index, weight = taps(plane.shape[0], out_length, scale)
    out = np.zeros((out_length, plane.shape[1]))
    for rows, w in zip(index, weight, strict=True):
        out += w[:, None] * plane[rows]
    return np.floor(np.clip(out, 0, 255) + 0.5).astype(np.uint8)


def _resize(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    if image.dtype != np.uint8:
        raise TypeError(f"image has dtype {image.dtype}; expected uint8 (0 to 255)")
    planes = image[..., None] if image.ndim == 2 else image
    # One plane at a time: the float64 work space is that of one channel.
    resized = [_resize_rows(_resize_rows(planes[..., c], scale).T, scale).T for c in range(planes.shape[2])]
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
    return _resize(hr, 1 / scale)


def upscale(lr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Bicubic interpolation by an integer factor: uint8 (H, W[, C]) to uint8 (scale H, scale W[, C])."""
    if scale < 1:
        raise ValueError(f"scale is {scale}; expected an integer of at least 1")
    return _resize(lr, float(scale))
