"""Base class of SwinIR and MambaIRv2: everything around their blocks. Inside, maps are (B, H, W, C)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from idc_ray.models.edsr import DIV2K_MEAN
from idc_ray.models.upscaler import reflect_pad
from idc_ray.models.window_attention import Windows, position_biases, windows_of


class PatchEmbed(nn.Module):
    """Layer normalisation only, as a patch is one pixel. A separate module for its name in checkpoints."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class WindowedNetwork(nn.Module):
    """Pads to whole windows, runs the body between two convolutions, and upsamples.

    The upsampler is that of the lightweight networks: a convolution to 3 scale^2 channels and a pixel shuffle.

    Args:
        scale: 1 (restoration), 2, 3 or 4.
        channels: width of the trunk.
        window: side of the attention windows.
        repeat_border: whether the padding repeats the border pixel, as in MambaIRv2 but not in SwinIR.

    Shape:
        (B, 3, H, W) in [0, 1] to (B, 3, scale H, scale W), not clamped; any size.
    """

    mean: Tensor

    def __init__(self, scale: int, channels: int, window: int, repeat_border: bool) -> None:
        super().__init__()
        if scale not in (1, 2, 3, 4):
            raise ValueError(f"scale is {scale}; {type(self).__name__} supports 1, 2, 3 and 4")
        self.scale, self.window, self.repeat_border = scale, window, repeat_border
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.patch_embed = PatchEmbed(channels)
        self.norm = nn.LayerNorm(channels)
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)

    def body(self, x: Tensor, windows: Windows) -> Tensor:
        """Apply the blocks to a (B, H, W, C) map; each architecture defines them."""
        raise NotImplementedError

    def biases(self) -> tuple[Tensor, ...]:
        """Position biases of all attention modules, computed at once: one kernel launch instead of one for each."""
        named = self.named_parameters()
        tables = tuple(value for name, value in named if name.endswith(".relative_position_bias_table"))
        return position_biases(torch.stack(tables), self.window).unbind()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = self.conv_first(self._whole_windows(x) - self.mean)
        windows = windows_of(x.shape[-2], x.shape[-1], self.window, x.device)
        deep = self.norm(self.body(self.patch_embed(x.permute(0, 2, 3, 1)), windows))
        x = self.conv_after_body(deep.permute(0, 3, 1, 2)) + x
        x = self.upsample(x) + self.mean
        return x[..., : height * self.scale, : width * self.scale]

    def _whole_windows(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = -height % self.window, -width % self.window
        if not (down or right):
            return x
        if not self.repeat_border:
            return reflect_pad(x, 0, down, 0, right)
        rows, columns = (_mirrored(side, more, x.device) for side, more in ((height, down), (width, right)))
        return x.index_select(-2, rows).index_select(-1, columns)


def _mirrored(length: int, more: int, device: torch.device) -> Tensor:
    """Indices 0 to length - 1 and ``more`` reflected ones, with the border repeated."""
    index = torch.arange(length + more, device=device) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


class ResidualBlock(nn.Module):
    """x + conv(layers(x)): a residual group with a convolution."""

    def __init__(self, channels: int, group: nn.Module) -> None:
        super().__init__()
        self.residual_group = group
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        return x + convolve(self.conv, self.residual_group(x, *arguments))


def convolve(convolution: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution to a (B, H, W, C) map."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def initialise(module: nn.Module) -> None:
    """For ``Module.apply``: weights of linear layers with standard deviation 0.02, biases zero, as published."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
