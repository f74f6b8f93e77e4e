"""Difficulty (the difference of the teacher to bicubic interpolation), hardness of positions, and position weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from idc_ray.images.resize import taps

Hardness = Literal["difficulty", "gradient", "both"]
TileWeights = Literal["uniform", "difficulty"]


@lru_cache(maxsize=16)
def _upscale_matrix(length: int, scale: int, device: torch.device) -> Tensor:
    index, weight = taps(length, length * scale, float(scale))
    matrix = torch.zeros(length * scale, length, dtype=torch.float64)
    matrix.scatter_add_(1, torch.tensor(index.T), torch.tensor(weight.T))  # repeated border pixels add up
    return matrix.float().to(device)


def bicubic_upscale(lr: Tensor, scale: int) -> Tensor:
    """Bicubic interpolation (a = -0.5) without rounding: (B, C, H, W) to (B, C, scale H, scale W), in [0, 1].

    Clamped like the teacher's output, so that overshoots beyond black and white do not count as difficulty.
    """
    rows = _upscale_matrix(lr.shape[-2], scale, lr.device)
    columns = _upscale_matrix(lr.shape[-1], scale, lr.device)
    return (rows @ lr @ columns.T).clamp(0, 1)


def difficulty(lr: Tensor, upscaled: Tensor, scale: int) -> Tensor:
    """|T(x) - bicubic(x)|, mean over channels and over each LR pixel's scale x scale block.

    Args:
        lr: (B, 3, H, W) in [0, 1].
        upscaled: the teacher's output (B, 3, scale H, scale W), in [0, 1].
        scale: integer factor.

    Returns:
        (B, H, W), not negative, in the units of the input.
    """
    error = (upscaled - bicubic_upscale(lr, scale)).abs().mean(1, keepdim=True)
    return torch.nn.functional.avg_pool2d(error, scale).squeeze(1)


def gradient(lr: Tensor) -> Tensor:
    """Magnitude of the gradient of the luma (BT.601, full range), by Sobel's operator, borders repeated.

    Args:
        lr: float (B, 3, H, W), in any units.

    Returns:
        (B, H, W), not negative, in those units a pixel.
    """
    red, green, blue = lr.unbind(1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
    luma = torch.nn.functional.pad(luma, (1,) * 4, mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=lr.device)
    both = torch.nn.functional.conv2d(luma, torch.stack([across, across.T]).unsqueeze(1))
    return both.square().sum(1).sqrt() / 8


def hardness_map(kind: Hardness, difficulties: Tensor | None, lr: Tensor) -> Tensor:
    """Hardness of positions.

    ``difficulty`` leaves out edges that interpolation does well, ``gradient`` fine texture of little contrast; their
    geometric mean, ``both``, is large where both are.

    Args:
        kind: see ``loss.hardness``.
        difficulties: (B, H, W) from :func:`difficulty`; may be None for ``gradient``.
        lr: (B, 3, H, W) in [0, 1].

    Returns:
        (B, H, W), not negative.
    """
    if kind == "gradient":
        return gradient(lr)
    assert difficulties is not None
    return difficulties if kind == "difficulty" else (difficulties * gradient(lr)).sqrt()


@dataclass(frozen=True)
class Weighting:
    """Weight of a local feature by its hardness d: min((d / mean + floor)^gamma, ceiling) (gamma 0: the paper).

    ``mean`` and ``ceiling`` come from the real image, also for its synthetic tiles.
    """

    mean: float
    ceiling: float
    gamma: float
    floor: float

    @classmethod
    def fit(cls, values: Tensor, gamma: float, floor: float, clip_percentile: float) -> Weighting:
        """Fit to the hardnesses of an image's positions, a flat tensor that is not empty."""
        values = values.double()
        # The hardness of a flat image is 0 everywhere; its weights must still be finite.
        mean = max(float(values.mean()), 1e-6)
        weights = (values / mean + floor) ** gamma
        rank = min(weights.numel() - 1, int(weights.numel() * clip_percentile / 100))
        return cls(mean, float(weights.kthvalue(rank + 1).values), gamma, floor)

    @property
    def uniform(self) -> bool:
        return self.gamma == 0

    def of_tiles(self, kind: TileWeights) -> Weighting:
        """Weighting of the synthetic tiles' positions, see ``loss.tile_weights``."""
        return self if kind == "difficulty" else replace(self, gamma=0.0)

    def __call__(self, values: Tensor) -> Tensor:
        """Weights (same shape, float32, positive) of hardnesses."""
        return ((values / self.mean + self.floor) ** self.gamma).clamp_max(self.ceiling)
