"""PSNR and SSIM by the protocol of super-resolution papers. numpy only.

For restoration (scale 1) PSNR is that of whole RGB images, the protocol of colour denoising.
Images are 8-bit RGB. ``crop`` (the scale) pixels are dropped at each border, and the rest is compared on
the limited-range luma of BT.601, in float64 without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

RANGE = 255.0
SIGMA = 1.5
WINDOW = 11


def rgb_to_y(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Limited-range luma Y of BT.601, as MATLAB's ``rgb2ycbcr`` but without rounding.

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        float64 (H, W) in [16, 235].

    Raises:
        ValueError: wrong type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} of shape {image.shape}; expected uint8 (H, W, 3)")
    return 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255


def border(scale: int) -> int:
    """Pixels dropped at each border: the scale, and none for restoration."""
    return scale if scale > 1 else 0


def psnr(sr: NDArray[np.uint8], hr: NDArray[np.uint8], scale: int) -> float:
    """PSNR in dB by the protocol of the task: :func:`psnr_y` with a crop of ``scale``, or at scale 1 that of RGB.

    Raises:
        ValueError: shapes differ, or nothing is left after the crop.
    """
    if scale > 1:
        return psnr_y(sr, hr, scale)
    if sr.shape != hr.shape:
        raise ValueError(f"the output has shape {sr.shape}, the ground truth {hr.shape}")
    return _decibel(float(np.mean((sr.astype(np.float64) - hr) ** 2)))


def _decibel(error: float) -> float:
    return math.inf if error == 0 else 10 * math.log10(RANGE**2 / error)


def psnr_y(sr: NDArray[np.uint8], hr: NDArray[np.uint8], crop: int) -> float:
    """Peak signal-to-noise ratio in dB; infinite for images that are equal inside the crop.

    Args:
        sr: the network's output, uint8 (H, W, 3).
        hr: the ground truth, of the same shape.
        crop: pixels dropped at each border.

    Raises:
        ValueError: shapes differ, or nothing is left after the crop.
    """
    a, b = _lumas(sr, hr, crop, smallest=1)
    return _decibel(float(np.mean((a - b) ** 2)))


def mean_psnr(psnrs: Iterable[float]) -> float:
    """Mean of the finite values in dB; infinite if none is finite.

    Images that are reproduced exactly, such as those of a single colour, would make every mean infinite.
    """
    return float(np.mean([psnr for psnr in psnrs if math.isfinite(psnr)] or [math.inf]))


def ssim_y(sr: NDArray[np.uint8], hr: NDArray[np.uint8], crop: int) -> float:
    """Structural similarity (Wang et al. 2004), 1 for equal images.

    Gaussian window of 11 x 11, sigma 1.5, K1 = 0.01, K2 = 0.03; mean over the positions where the window
    lies inside the cropped image. Equal to scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255)`` of the cropped Y channels.

    Args:
        sr: the network's output, uint8 (H, W, 3).
        hr: the ground truth, of the same shape.
        crop: pixels dropped at each border.

    Raises:
        ValueError: shapes differ, or fewer than 11 x 11 pixels are left after the crop.
    """
    a, b = _lumas(sr, hr, crop, smallest=WINDOW)
    mean_a, mean_b = _filter(a), _filter(b)
    variance_a = _filter(a * a) - mean_a**2
    variance_b = _filter(b * b) - mean_b**2
    covariance = _filter(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float(np.mean(luminance * structure))


def _lumas(
    sr: NDArray[np.uint8], hr: NDArray[np.uint8], crop: int, smallest: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if sr.shape != hr.shape:
        raise ValueError(
            f"the output has shape {sr.shape}, the ground truth {hr.shape}; mod-crop the ground truth to the scale"
        )
    if crop < 0:
        raise ValueError(f"crop is {crop}; expected 0 or more pixels")
    height, width = hr.shape[0] - 2 * crop, hr.shape[1] - 2 * crop
    if min(height, width) < smallest:
        raise ValueError(
            f"{hr.shape[1]} x {hr.shape[0]} pixels leave {width} x {height} after a crop of {crop}; "
            f"expected at least {smallest} x {smallest}"
        )
    inside = np.s_[crop : crop + height, crop : crop + width]
    return rgb_to_y(sr)[inside], rgb_to_y(hr)[inside]


def _filter(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Gaussian window at every position where it fits: (H, W) to (H - 10, W - 10)."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    weights /= weights.sum()
    height, width = x.shape[0] - WINDOW + 1, x.shape[1] - WINDOW + 1
    rows = sum(w * x[i : i + height] for i, w in enumerate(weights))
    return sum(w * rows[:, i : i + width] for i, w in enumerate(weights))
