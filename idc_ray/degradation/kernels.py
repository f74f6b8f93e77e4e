"""Blur kernels, and convolution that gives the same bytes on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Kernels are rounded to multiples of 1 / WHOLE. Sums are then whole numbers, which no order of addition changes.
WHOLE = 2**20

#: Rows of an image that are convolved at a time, to bound memory.
ROWS = 256


def blur_kernel(drawn: dict[str, Any]) -> NDArray[np.float64]:
    """The kernel (side, side), sum 1, of a blur step as :func:`idc_ray.degradation.draw` gives it.

    Formulas: Real-ESRGAN (arXiv 2107.10833), sections 3.2 and 3.4 and appendix A.
    """
    radius = drawn["size"] // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    if drawn["kernel"] == "sinc":
        cutoff = np.pi * drawn["cutoff"]
        distance = np.hypot(x, y)
        distance[radius, radius] = 1
        kernel = cutoff * _bessel_j1(cutoff * distance) / (2 * np.pi * distance)
        kernel[radius, radius] = cutoff**2 / (4 * np.pi)
    else:
        (first, second), angle = drawn["sigma"], drawn["angle"]
        along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        power = ((along / first) ** 2 + (across / second) ** 2) ** drawn.get("beta", 1.0)
        kernel = 1 / (1 + power) if drawn["kernel"].startswith("plateau") else np.exp(-power / 2)
    return kernel / kernel.sum()


def _bessel_j1(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bessel function of the first kind of order 1, for |x| up to 140.

    The mean of Bessel's integrand over a period; equally spaced points converge exponentially.
    """
    t = np.arange(256) * (np.pi / 128)
    return np.cos(t - x[..., None] * np.sin(t)).mean(-1)


def blur(image: NDArray[np.uint8], kernel: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Convolve uint8 (H, W, 3), reflected at the borders, with a point-symmetric kernel; rounded to 8 bits.

    The Fourier transform's error is far below 1/2, so the rounded sums are exact.
    """
    weights = np.rint(kernel * WHOLE)
    total, margin = int(weights.sum()), len(kernel) - 1
    height, width = image.shape[:2]
    padded = np.pad(image, [(margin // 2, margin // 2)] * 2 + [(0, 0)], mode="reflect").transpose(2, 0, 1)
    shape = (min(ROWS, height) + margin, -(-(width + margin) // 64) * 64)  # of small factors, as FFTs prefer
    spectrum = np.fft.rfft2(weights, shape)
    out = np.empty_like(image)
    for top in range(0, height, ROWS):
        rows = padded[:, top : top + ROWS + margin]
        sums = np.rint(np.fft.irfft2(np.fft.rfft2(rows, shape) * spectrum, shape)).astype(np.int64)
        valid = sums[:, margin : rows.shape[1], margin : margin + width]
        out[top : top + ROWS] = ((2 * valid + total) // (2 * total)).clip(0, 255).transpose(1, 2, 0)
    return out
