"""SwinIR (Liang et al. 2021, arXiv 2108.10257), in its lightweight form.

Parameters and buffers have the names and shapes of the published checkpoints, so that weights can be exchanged
with everything that reads or writes those. Values are in [0, 1] on both sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idc_ray.models.registry import ModelSpec, register_architecture, register_model
from idc_ray.models.window_attention import attend_in_windows, position_bias, relative_position_index, shift_mask
from idc_ray.models.windowed import WindowedNetwork, convolve, initialise

__all__ = ["SwinIR"]


class Attention(nn.Module):
    """Multi-head attention in windows, with a learnt bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        bias = position_bias(self.relative_position_bias_table, self.relative_position_index)
        return self.proj(attend_in_windows(self.qkv(x), bias, self.window, self.shift, mask))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, at each position."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class SwinLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); in training a sample's residual is dropped now and then."""

    def __init__(
        self, channels: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float, image_size: int
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(mlp_ratio * channels))
        # Published checkpoints carry this for one image size. It is only kept for them: the mask of the image at
        # hand comes from the network.
        mask = shift_mask(image_size, image_size, window, shift) if shift else None
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self._dropped(self.attn(self.norm1(x), mask if self.attn.shift else None))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, residual: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return residual
        keep = 1 - self.drop_path
        return residual * residual.new_empty(len(residual), 1, 1, 1).bernoulli_(keep).div_(keep)


class ResidualGroup(nn.Module):
    """Swin layers in a row, every second one shifted by half a window."""

    def __init__(self, layers: list[SwinLayer]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layers)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class SwinBlock(nn.Module):
    """The paper's RSTB: x + conv(Swin layers(x))."""

    def __init__(self, channels: int, layers: list[SwinLayer]) -> None:
        super().__init__()
        self.residual_group = ResidualGroup(layers)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + convolve(self.conv, self.residual_group(x, mask))


@register_architecture("swinir")
class SwinIR(WindowedNetwork):
    """SwinIR with the upsampler of the lightweight networks ("pixelshuffledirect") and "1conv" residuals.

    Args:
        scale: 2, 3 or 4.
        channels: width of the trunk, a multiple of ``heads``.
        blocks: residual Swin transformer blocks (RSTB).
        layers: Swin layers in each.
        heads: of the attention.
        window: side of its windows.
        mlp_ratio: hidden width of the MLPs over ``channels``.
        drop_path: how often the last layer's residuals are dropped in training, the others' linearly less often
            (0.1 in the published code).
        image_size: for what image size checkpoints carry attention masks (64 in the published ones); images of
            any size can be upscaled.

    Shape:
        (B, 3, H, W) in [0, 1] to (B, 3, scale H, scale W), not clamped.
    """

    def __init__(
        self,
        scale: int,
        channels: int = 60,
        blocks: int = 4,
        layers: int = 6,
        heads: int = 6,
        window: int = 8,
        mlp_ratio: float = 2.0,
        drop_path: float = 0.1,
        image_size: int = 64,
    ) -> None:
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split among {heads} heads")
        if image_size % window or image_size <= window:  # one window: readers of the format then expect no mask
            raise ValueError(f"image_size is {image_size}; expected a multiple of the window, {window}, from twice it")
        super().__init__(scale, channels, window, repeat_border=False)
        rates = torch.linspace(0, drop_path, blocks * layers, device="cpu").tolist()
        made = [
            SwinLayer(channels, heads, window, (i % layers % 2) * (window // 2), mlp_ratio, rate, image_size)
            for i, rate in enumerate(rates)
        ]
        groups = [made[i : i + layers] for i in range(0, len(made), layers)]
        self.layers = nn.ModuleList(SwinBlock(channels, group) for group in groups)
        self.apply(initialise)

    def body(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.layers:
            x = block(x, mask)
        return x


@register_model
def swinir_light(scale: int) -> ModelSpec:
    """SwinIR-light (section 4.2 of the paper): 4 blocks of 6 layers, 60 channels; 0.91 M parameters at x2."""
    arguments = {"channels": 60, "blocks": 4, "layers": 6, "heads": 6, "window": 8, "mlp_ratio": 2.0}
    return ModelSpec("swinir", scale, arguments)
