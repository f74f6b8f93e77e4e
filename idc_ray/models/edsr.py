"""EDSR: enhanced deep residual network (Lim et al. 2017, arXiv 1707.02921).

Parameters have BasicSR's names (``conv_first``, ``body``, ``conv_after_body``, ``upsample``,
``conv_last``). Its published weights expect values up to 255, this network values up to 1:
dividing or multiplying every bias by 255 converts one into the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idc_ray.models.registry import ModelSpec, register_architecture, register_model

#: Mean RGB of DIV2K in [0, 1], which published EDSR weights subtract.
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


def _conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ResidualBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x))): EDSR's block, without batch normalisation."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = _conv3(channels, channels)
        self.conv2 = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(torch.relu(self.conv1(x)))
        return x + (residual if self.res_scale == 1 else residual * self.res_scale)


class Upsample(nn.Sequential):
    """Sub-pixel convolutions: none for 1, one stage for 2 and 3, two stages of 2 for 4."""

    def __init__(self, scale: int, channels: int) -> None:
        factors = {1: [], 2: [2], 3: [3], 4: [2, 2]}.get(scale)
        if factors is None:
            raise ValueError(f"scale is {scale}; EDSR supports 1, 2, 3 and 4")
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [_conv3(channels, factor * factor * channels), nn.PixelShuffle(factor)]
        super().__init__(*layers)


@register_architecture("edsr")
class EDSR(nn.Module):
    """EDSR for RGB images.

    Args:
        scale: 1 (restoration), 2, 3 or 4.
        channels: width of the trunk.
        blocks: number of residual blocks.
        res_scale: factor on each block's residual (1 for the baseline; the paper uses 0.1 for 256 channels).

    Shape:
        (B, 3, H, W) in [0, 1] to (B, 3, scale H, scale W), not clamped.
    """

    mean: Tensor

    def __init__(self, scale: int, channels: int = 64, blocks: int = 16, res_scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = _conv3(3, channels)
        self.body = nn.Sequential(*(ResidualBlock(channels, res_scale) for _ in range(blocks)))
        self.conv_after_body = _conv3(channels, channels)
        self.upsample = Upsample(scale, channels)
        self.conv_last = _conv3(channels, 3)
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(x - self.mean)
        x = self.conv_after_body(self.body(x)) + x
        return self.conv_last(self.upsample(x)) + self.mean


@register_model
def edsr_small(scale: int) -> ModelSpec:
    """4 blocks of 32 channels, about 0.1 M parameters, for trials on a CPU; not from the paper."""
    return ModelSpec("edsr", scale, {"channels": 32, "blocks": 4})


@register_model
def edsr_baseline(scale: int) -> ModelSpec:
    """The paper's baseline (section 4.2): 16 blocks of 64 channels; 1.37 M parameters at x2."""
    return ModelSpec("edsr", scale, {"channels": 64, "blocks": 16})
