"""Measures of the quality of a tile."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

Luma = NDArray[np.float64]
Image = NDArray[np.uint8]

#: Verdict on a tile that meets all limits.
KEPT = "kept"

BLOCK = 8  # of JPEG
CELL = 16  # of which the smoothest tell the noise


def exposure(image: Image, luma: Luma) -> float:
    """Share of pixels with a channel at 0 or 255."""
    return float(((image == 0) | (image == 255)).any(-1).mean())


def flatness(image: Image, luma: Luma) -> float:
    """Mean gradient magnitude."""
    return float(np.hypot(*np.gradient(luma)).mean())


def complexity(image: Image, luma: Luma) -> float:
    """Bits a pixel of the luma as JPEG of quality 75."""
    buffer = io.BytesIO()
    Pillow.fromarray(np.floor(luma + 0.5).astype(np.uint8)).save(buffer, "JPEG", quality=75)
    return 8 * buffer.tell() / luma.size


def blur(image: Image, luma: Luma) -> float:
    """Perceptual blur metric of Crete, Dolmiere, Ladret and Nicolas (2007), as scikit-image has it."""
    from skimage.measure import blur_effect

    return float(blur_effect(luma))


def blockiness(image: Image, luma: Luma) -> float:
    """Mean step over the columns and rows of the strongest 8 x 8 grid, relative to the mean of all others.

    After the idea of Wang, Sheikh and Bovik (2002). The grid may begin anywhere, as images are cropped.
    """
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(luma, axis=axis)).mean(1 - axis)
        phases = np.array([steps[phase::BLOCK].mean() for phase in range(BLOCK)])
        strongest = phases.argmax()
        ratios.append(phases[strongest] / max(np.delete(phases, strongest).mean(), 1e-9))
    return float(min(ratios))  # texture is periodic in one direction at most, JPEG in both


def noise(image: Image, luma: Luma) -> float:
    """Noise level of Immerkaer (1996) in the smoothest tenth of the cells, in which there is little else."""
    vertical = luma[:-2] - 2 * luma[1:-1] + luma[2:]
    response = np.abs(vertical[:, :-2] - 2 * vertical[:, 1:-1] + vertical[:, 2:])
    rows, columns = (side // CELL for side in response.shape)
    cells = response[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL).mean((1, 3))
    return float(np.quantile(cells, 0.1)) * math.sqrt(math.pi / 2) / 6


#: Measures by the names of their limits, in the order in which they are applied; and whether large values are bad.
MEASURES: dict[str, tuple[Callable[[Image, Luma], float], bool]] = {
    "exposure": (exposure, True),
    "flatness": (flatness, False),
    "complexity": (complexity, False),
    "blur": (blur, True),
    "blockiness": (blockiness, True),
    "noise": (noise, True),
}


def judge(image: Image, limits: dict[str, float | None]) -> tuple[str, dict[str, float]]:
    """The first limit that a tile, uint8 (H, W, 3), does not meet, or `KEPT`; and the values up to that one."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    values = {}
    for name, (measure, large_is_bad) in MEASURES.items():
        limit = limits[name]
        if limit is None:
            continue
        value = values[name] = round(measure(image, luma), 4)
        if (value > limit) if large_is_bad else (value < limit):
            return name, values
    return KEPT, values
