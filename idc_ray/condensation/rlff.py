"""Random local Fourier features (RLFF; IDC, arXiv 2505.21099, section 3).

A local feature u is the k x k neighbourhood of a feature map at one position, a vector of c k^2
numbers. A frequency t of the same length turns it into cos(t.u) and sin(t.u). t.u at all positions
at once *is* a convolution of the map with t reshaped to (c, k, k), so nothing is unfolded.

Ours: the bandwidths of a set share their directions, t = s d for each bandwidth s. Each frequency has the distribution
that it would have alone, but one convolution with d serves all bandwidths. On frequencies drawn independently the
loss after matching is no worse (0.0143 against 0.0144, mean of eight photographs at the defaults).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idc_ray.condensation.seeding import generator

__all__ = ["FrequencyBank", "draw_bank", "fourier_maps", "fourier_sums"]


@dataclass(frozen=True)
class FrequencyBank:
    """All frequencies of a run: the same for every image, so they are constant kernels.

    Attributes:
        directions: (B, d, c, k, k); times each bandwidth they are the m frequencies of a set.
        held_out: (h, c, k, k), frequencies drawn one by one; never optimised on, all reported losses are on these.
        bandwidths: scales s; frequencies of one scale are contiguous and each scale has as many.
    """

    directions: Tensor
    held_out: Tensor
    bandwidths: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.held_out)
        if count % len(self.bandwidths):
            raise ValueError(f"num_held_out is {count}; expected a multiple of the {len(self.bandwidths)} bandwidths")

    @property
    def scales(self) -> Tensor:
        """The bandwidths on the bank's device, as :func:`fourier_sums` takes them."""
        return self.directions.new_tensor(self.bandwidths)

    @property
    def sets(self) -> Tensor:
        """(B, m, c, k, k) the frequencies themselves; step i of the optimisation uses set i mod B."""
        return (self.directions.unsqueeze(1) * self.scales.view(1, -1, 1, 1, 1, 1)).flatten(1, 2)

    def per_bandwidth(self, values: Tensor) -> Tensor:
        """Mean over each bandwidth's frequencies: (..., m) to (..., number of bandwidths)."""
        return values.unflatten(-1, (len(self.bandwidths), -1)).mean(-1)

    def to(self, device: torch.device) -> FrequencyBank:
        return FrequencyBank(self.directions.to(device), self.held_out.to(device), self.bandwidths)


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

    if num_frequencies % len(bandwidths) or num_held_out % len(bandwidths):
        raise ValueError(
            f"num_frequencies {num_frequencies} and num_held_out {num_held_out} must be multiples "
            f"of the {len(bandwidths)} bandwidths"
        )

    def draw(purpose: str, *counts: int) -> Tensor:
        shape = (*counts, channels, kernel_size, kernel_size)
        normal = torch.randn(shape, generator=generator(seed, "frequency bank", purpose))
        return normal / (channels * kernel_size**2) ** 0.5

    scale_of_held_out = torch.tensor(bandwidths).repeat_interleave(num_held_out // len(bandwidths))
    return FrequencyBank(
        draw("optimised", num_sets, num_frequencies // len(bandwidths)),
        draw("held out", num_held_out) * scale_of_held_out.view(-1, 1, 1, 1),
        tuple(bandwidths),
    )


def _together(features: Tensor) -> int:
    """Maps that one convolution takes: one on a CPU, whose cache holds one map's phases but not those of four."""
    return 1 if features.device.type == "cpu" else len(features)


def _cos_sin(phase: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin; ``phase`` is overwritten. On one CPU thread numpy's take 0.4 of the time of torch's."""
    if phase.device.type != "cpu" or torch.get_num_threads() > 1:
        return phase.cos(), phase.sin_()
    values = phase.numpy()
    cos = torch.from_numpy(np.cos(values))
    np.sin(values, out=values)
    return cos, phase


class _FourierSums(torch.autograd.Function):
    """Weighted sums of cos and sin of a convolution; the backward pass reuses both instead of recomputing them."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernels: Tensor, weights: Tensor, scales: Tensor) -> Tensor:
        together, sums, kept = _together(features), [], []
        for maps, weight in zip(features.split(together), weights.split(together), strict=True):
            projections = F.conv2d(maps, kernels).unsqueeze(1)
            cos, sin = _cos_sin((projections * scales.view(1, -1, 1, 1, 1)).flatten(1, 2))
            column = weight.flatten(1).unsqueeze(-1)
            sums.append(torch.cat([cos.flatten(2) @ column, sin.flatten(2) @ column], dim=-1))
            if ctx.needs_input_grad[0]:
                kept += [cos, sin]
        ctx.save_for_backward(kernels, weights, scales, *kept)
        return torch.cat(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        kernels, weights, scales, *kept = ctx.saved_tensors
        together, out = len(kept[0]), []
        of_sums = (grads[0] * scales.repeat_interleave(len(kernels)).unsqueeze(-1))[..., None, None].split(together)
        for cos, sin, g, weight in zip(kept[::2], kept[1::2], of_sums, weights.split(together), strict=True):
            of_phases = (g[:, :, 1] * cos).addcmul_(g[:, :, 0], sin, value=-1)
            of_projections = of_phases.unflatten(1, (len(scales), -1)).sum(1).mul_(weight.unsqueeze(1))
            out.append(F.conv_transpose2d(of_projections, kernels))
        return torch.cat(out), None, None, None


def fourier_sums(features: Tensor, kernels: Tensor, weights: Tensor, scales: Tensor | None = None) -> Tensor:
    """Weighted sum over positions of (cos t.u, sin t.u), for each map and frequency.

    Args:
        features: (B, c, H, W), standardised.
        kernels: (d, c, k, k), frequencies, or directions if there are scales.
        weights: (B, H - k + 1, W - k + 1), not negative: one weight for each local feature.
        scales: (b,); the frequencies are all kernels times the first scale, then times the second, and so on.

    Returns:
        (B, m, 2), m = d or b d. Divided by ``weights.sum((1, 2))`` it is the empirical characteristic function.
        Differentiable in ``features`` only.
    """
    return _FourierSums.apply(features, kernels, weights, kernels.new_ones(1) if scales is None else scales)


def fourier_maps(features: Tensor, kernels: Tensor, scales: Tensor) -> Tensor:
    """(cos t.u, sin t.u) at every position of one map, for each frequency, in the order of :func:`fourier_sums`.

    Args:
        features: (c, H, W), standardised.
        kernels: (d, c, k, k), directions.
        scales: (b,), bandwidths.

    Returns:
        (2, b d, H - k + 1, W - k + 1).
    """
    projections = F.conv2d(features.unsqueeze(0), kernels)[0]
    return torch.stack(_cos_sin((projections * scales.view(-1, 1, 1, 1)).flatten(0, 1)))
