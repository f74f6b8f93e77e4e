"""SwinIR (Liang et al. 2021, arXiv 2108.10257), in its lightweight form.

Parameters and buffers have the names and shapes of the published checkpoints. Input and output are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from idc_ray.models.permutation import reorder
from idc_ray.models.registry import ModelSpec, register_architecture, register_model
from idc_ray.models.window_attention import Windows, attend, relative_position_index, shift_mask
from idc_ray.models.windowed import ResidualBlock, WindowedNetwork, initialise


class Attention(nn.Module):
    """Multi-head attention in windows, with a learned bias for each relative position."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))  # for checkpoints only
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        return self.proj(attend(self.qkv(x), bias, mask))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class SwinLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on maps in window order (B, windows, window^2, C)."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, mlp_ratio: float, image_size: int) -> None:
        super().__init__()
        self.shifted = shift > 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(mlp_ratio * channels))
        # Published checkpoints contain the mask for one image size. It is not used in the forward pass.
        mask = shift_mask(image_size, image_size, window, shift) if shift else None
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
        """``kept``: factors of each sample's two residual branches, (2, B, 1, 1, 1); None: all 1."""
        x = _add(x, self.attn(self.norm1(x), bias, mask), None if kept is None else kept[0])
        return _add(x, self.mlp(self.norm2(x)), None if kept is None else kept[1])


class ResidualGroup(nn.Module):
    """A sequence of Swin layers, every second one shifted by half a window."""

    def __init__(self, layers: list[SwinLayer]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layers)

    def forward(self, x: Tensor, windows: Windows, biases: Sequence[Tensor], kept: Sequence[Tensor | None]) -> Tensor:
        size, positions = x.shape[1:3], windows.mask.shape[:2]
        x = reorder(x.flatten(1, 2), windows.plain)
        for block, bias, factors in zip(self.blocks, biases, kept, strict=True):
            x = reorder(x, windows.shift) if block.shifted else x
            x = block(x.unflatten(1, positions), bias, windows.mask if block.shifted else None, factors).flatten(1, 2)
            x = reorder(x, windows.shift.back) if block.shifted else x
        return reorder(x, windows.plain.back).unflatten(1, size)


def _add(x: Tensor, residual: Tensor, factor: Tensor | None) -> Tensor:
    return x + residual if factor is None else torch.addcmul(x, residual, factor)


@register_architecture("swinir")
class SwinIR(WindowedNetwork):
    """SwinIR with the upsampler of the lightweight networks ("pixelshuffledirect") and "1conv" residual connections.

    Args:
        scale: 1, 2, 3 or 4.
        channels: width of the trunk, a multiple of ``heads``.
        blocks: residual Swin transformer blocks (RSTB).
        layers: Swin layers in each.
        heads: number of attention heads.
        window: side of the attention windows.
        mlp_ratio: hidden width of the MLPs divided by ``channels``.
        drop_path: stochastic depth: probability of dropping the last layer's residuals in training; it rises linearly
            from 0 at the first layer (0.1 in the published code).
        image_size: image size of the attention masks in checkpoints (64 in the published ones); images of any size
            can be upscaled.

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
            raise ValueError(f"channels is {channels}; expected a multiple of heads, {heads}")
        if image_size % window or image_size <= window:  # published code has no masks for a single window
            raise ValueError(
                f"image_size is {image_size}; expected a multiple of the window, {window}, of at least {2 * window}"
            )
        super().__init__(scale, channels, window, repeat_border=False)
        self.drop_path, self.depth = drop_path, layers
        made = [
            SwinLayer(channels, heads, window, (i % layers % 2) * (window // 2), mlp_ratio, image_size)
            for i in range(blocks * layers)
        ]
        groups = [made[i : i + layers] for i in range(0, len(made), layers)]
        self.layers = nn.ModuleList(ResidualBlock(channels, ResidualGroup(group)) for group in groups)
        self.apply(initialise)

    def body(self, x: Tensor, windows: Windows) -> Tensor:
        biases = self.biases()
        kept = self._kept(len(x), x.device)
        for i, block in enumerate(self.layers):
            layers = slice(i * self.depth, (i + 1) * self.depth)
            x = block(x, windows, biases[layers], kept[layers])
        return x

    def _kept(self, batch: int, device: torch.device) -> Sequence[Tensor | None]:
        """Stochastic depth: for each layer, 0 for dropped residuals, 1 / (1 - probability of dropping) for others."""
        layers = len(self.layers) * self.depth
        if not self.training or self.drop_path == 0:
            return [None] * layers
        keep = torch.linspace(1, 1 - self.drop_path, layers, device=device).view(-1, 1, 1).expand(-1, 2, batch)
        return keep.bernoulli().div_(keep)[..., None, None, None].unbind()


@register_model
def swinir_light(scale: int) -> ModelSpec:
    """SwinIR-light (section 4.2 of the paper): 4 blocks of 6 layers, 60 channels; 0.91 M parameters at x2."""
    arguments = {"channels": 60, "blocks": 4, "layers": 6, "heads": 6, "window": 8, "mlp_ratio": 2.0}
    return ModelSpec("swinir", scale, arguments)
