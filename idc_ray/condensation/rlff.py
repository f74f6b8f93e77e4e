"""Random local Fourier features (RLFF; IDC, arXiv 2505.21099, section 3).

A local feature u is the k x k neighbourhood of a feature map at one position, a vector of c k^2
numbers. A frequency t of the same length turns it into cos(t.u) and sin(t.u). t.u at all positions
at once *is* a convolution of the map with t reshaped to (c, k, k), so nothing is unfolded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from idc_ray.condensation.seeding import generator

__all__ = ["FrequencyBank", "draw_bank", "fourier_sums"]


@dataclass(frozen=True)
class FrequencyBank:
    """All frequencies of a run: the same for every image, so they are constant kernels.

    Attributes:
        sets: (B, m, c, k, k); step i of the optimisation uses set i mod B.
        held_out: (h, c, k, k); never optimised on, all reported losses are on these.
        bandwidths: scales s; frequencies of one scale are contiguous and each scale has as many.
    """

    sets: Tensor
    held_out: Tensor
    bandwidths: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, count in (("num_frequencies", self.sets.shape[1]), ("num_held_out", self.held_out.shape[0])):
            if count % len(self.bandwidths):
                raise ValueError(f"{name} is {count}; expected a multiple of the {len(self.bandwidths)} bandwidths")

    def per_bandwidth(self, values: Tensor) -> Tensor:
        """Mean over each bandwidth's frequencies: (..., m) to (..., number of bandwidths)."""
        return values.unflatten(-1, (len(self.bandwidths), -1)).mean(-1)

    def to(self, device: torch.device) -> FrequencyBank:
        return FrequencyBank(self.sets.to(device), self.held_out.to(device), self.bandwidths)


def draw_bank(
    seed: int,
    channels: int,
    kernel_size: int,
    bandwidths: tuple[float, ...],
    num_sets: int,
    num_frequencies: int,
    num_held_out: int,
) -> FrequencyBank:
    """Draw the bank: t ~ N(0, s^2 / (c k^2) I) for each bandwidth s, so that t.u ~ N(0, s^2) for standardised u."""

    def draw(purpose: str, count: int, frequencies: int) -> Tensor:
        shape = (count, frequencies, channels, kernel_size, kernel_size)
        normal = torch.randn(shape, generator=generator(seed, "frequency bank", purpose))
        scale = torch.tensor(bandwidths).repeat_interleave(frequencies // len(bandwidths))
        return normal * scale.view(1, -1, 1, 1, 1) / (channels * kernel_size**2) ** 0.5

    if num_frequencies % len(bandwidths) or num_held_out % len(bandwidths):
        raise ValueError(
            f"num_frequencies {num_frequencies} and num_held_out {num_held_out} must be multiples "
            f"of the {len(bandwidths)} bandwidths"
        )
    return FrequencyBank(
        draw("optimised", num_sets, num_frequencies), draw("held out", 1, num_held_out)[0], tuple(bandwidths)
    )


class _FourierSums(torch.autograd.Function):
    """Weighted sums of cos and sin of a convolution; the backward pass reuses both instead of recomputing them."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
        phase = F.conv2d(features, kernels)
        cos, sin = phase.cos(), phase.sin()
        ctx.save_for_backward(cos, sin, kernels, weights)
        column = weights.flatten(1).unsqueeze(-1)
        return torch.cat([cos.flatten(2) @ column, sin.flatten(2) @ column], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin, kernels, weights = ctx.saved_tensors
        g = grads[0][..., None, None]
        grad_phase = (g[:, :, 1] * cos - g[:, :, 0] * sin) * weights.unsqueeze(1)
        return F.conv_transpose2d(grad_phase, kernels), None, None


def fourier_sums(features: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over positions of (cos t.u, sin t.u), for each map and frequency.

    Args:
        features: (B, c, H, W), standardised.
        kernels: (m, c, k, k), frequencies.
        weights: (B, H - k + 1, W - k + 1), not negative: one weight for each local feature.

    Returns:
        (B, m, 2). Divided by ``weights.sum((1, 2))`` it is the empirical characteristic function.
        Differentiable in ``features`` only.
    """
    return _FourierSums.apply(features, kernels, weights)
