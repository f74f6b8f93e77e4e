"""Difficulty: how much the teacher adds to bicubic interpolation, and the weights made from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from idc_ray.images.resize import taps

__all__ = ["TileWeights", "Weighting", "bicubic_upscale", "difficulty"]

TileWeights = Literal["uniform", "difficulty"]


@lru_cache(maxsize=16)
def _upscale_matrix(length: int, scale: int, device: torch.device) -> Tensor:
    index, weight = taps(length, length * scale, float(scale))
    matrix = torch.zeros(length * scale, length, dtype=torch.float64)
    matrix.scatter_add_(1, torch.tensor(index.T), torch.tensor(weight.T))  # repeated border pixels add up
    return matrix.float().to(device)


def bicubic_upscale(lr: Tensor, scale: int) -> Tensor:
    """Bicubic interpolation (a = -0.5) without rounding: (B, C, H, W) to (B, C, scale H, scale W), in [0, 1].

    Clamped as the teacher's output is: what it overshoots beyond black and white is no difficulty.
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


@dataclass(frozen=True)
class Weighting:
    """Weight of a local feature by its difficulty d: min((d / mean + floor)^gamma, ceiling) (ours; gamma 0: the paper).

    ``mean`` and ``ceiling`` come from the real image, also for its synthetic tiles.
    """

    mean: float
    ceiling: float
    gamma: float
    floor: float

    @classmethod
    def fit(cls, values: Tensor, gamma: float, floor: float, clip_percentile: float) -> Weighting:
        """Fit to the difficulties of an image's positions, a flat tensor that is not empty."""
        values = values.double()
        # A flat image has no difficulty anywhere; its weights must still be finite.
        mean = max(float(values.mean()), 1e-6)
        weights = (values / mean + floor) ** gamma
        rank = min(weights.numel() - 1, int(weights.numel() * clip_percentile / 100))
        return cls(mean, float(weights.sort().values[rank]), gamma, floor)

    @property
    def uniform(self) -> bool:
        return self.gamma == 0

    def of_tiles(self, kind: TileWeights) -> Weighting:
        """What the synthetic tiles' positions weigh by, see ``loss.tile_weights``."""
        return self if kind == "difficulty" else replace(self, gamma=0.0)

    def __call__(self, values: Tensor) -> Tensor:
        """Weights (same shape, float32, positive) of difficulties."""
        return ((values / self.mean + self.floor) ** self.gamma).clamp_max(self.ceiling)
