"""Initial weights with which an EDSR is bilinear interpolation before its first training step.

Three channels of the trunk carry the colours, the residual branches start at zero, and the sub-pixel
convolutions interpolate. After few training steps this is worth several tenths of a decibel. The architecture
is unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idc_ray.models.edsr import EDSR, ResidualBlock

COLOURS = 3


def _bilinear(factor: int) -> Tensor:
    """(factor, 3): weights of the previous, current and next pixel for each sub-pixel of a row."""
    offset = (torch.arange(factor) + 0.5) / factor - 0.5
    return torch.stack([(-offset).clamp_min(0), 1 - offset.abs(), offset.clamp_min(0)], dim=1)


def _copy_colours(conv: nn.Conv2d) -> None:
    """The first three output channels copy the first three input channels."""
    conv.weight[:COLOURS] = 0
    for c in range(COLOURS):
        conv.weight[c, c, 1, 1] = 1


@torch.no_grad()
def interpolation_start(model: EDSR) -> None:
    """Set the weights of a newly created EDSR in place; weights without an effect keep their random values."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            module.bias.zero_()
    _copy_colours(model.conv_first)
    for block in model.body:
        assert isinstance(block, ResidualBlock)
        block.conv2.weight.zero_()
    model.conv_after_body.weight.zero_()
    stages = list(model.upsample)
    for conv, shuffle in zip(stages[0::2], stages[1::2], strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(shuffle, nn.PixelShuffle)
        factor = shuffle.upscale_factor
        line = _bilinear(factor)
        kernels = torch.einsum("iy,jx->ijyx", line, line).flatten(0, 1)
        conv.weight[: COLOURS * factor**2] = 0
        for c in range(COLOURS):
            conv.weight[c * factor**2 : (c + 1) * factor**2, c] = kernels
    model.conv_last.weight.zero_()
    _copy_colours(model.conv_last)
