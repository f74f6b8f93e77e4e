"""MambaIRv2 (Guo et al. 2024, arXiv 2411.15269), in its lightweight form.

Parameters and buffers have the names and shapes of the published checkpoints. Values are in [0, 1] on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idc_ray.models.permutation import Permutation, reorder
from idc_ray.models.registry import ModelSpec, register_architecture, register_model
from idc_ray.models.selective_scan import selective_scan
from idc_ray.models.window_attention import Windows, attend, relative_position_index
from idc_ray.models.windowed import ResidualBlock, WindowedNetwork, convolve, initialise


class Attention(nn.Module):
    """Multi-head attention in windows and the output projection; queries, keys and values are the input."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.proj = nn.Linear(channels, channels)

    def forward(self, qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        return self.proj(attend(qkv, bias, mask))


class Gate(nn.Module):
    """Half of the channels, times the other half after a depthwise 5 x 5 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * convolve(self.conv, self.norm(gate))


class GatedMlp(nn.Module):
    """Two linear layers; between them a GELU and the gate, which halves the width."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.sg = Gate(hidden // 2)
        self.fc2 = nn.Linear(hidden // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.sg(functional.gelu(self.fc1(x))))


class PromptedScan(nn.Module):
    """The state-space equation (section 3.2): a selective scan whose output matrix C has the prompt added.

    Initial values are Mamba's: rates 1 to N, step sizes from 0.001 to 0.1.
    """

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        self.states, self.rank = states, math.ceil(channels / 16)
        self.x_proj_weight = nn.Parameter(torch.empty(1, self.rank + 2 * states, channels))
        self.dt_projs_weight = nn.Parameter(torch.empty(1, channels, self.rank))
        nn.init.uniform_(self.x_proj_weight, -(channels**-0.5), channels**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(self.rank**-0.5), self.rank**-0.5)
        step = torch.empty(1, channels).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_projs_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # the softplus's inverse
        self.A_logs = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(channels, 1))
        self.Ds = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        step, b, c = (x @ self.x_proj_weight.squeeze(0).t()).split([self.rank, self.states, self.states], -1)
        step = step @ self.dt_projs_weight.squeeze(0).t()
        return selective_scan(x, step, -self.A_logs.exp(), b, c + prompt, self.Ds, self.dt_projs_bias.squeeze(0))


class AttentiveStateSpace(nn.Module):
    """The paper's ASSM (sections 3.2 and 3.3): every pixel chooses one of a pool of prompts, and pixels with the same
    prompt become neighbours in the scanned sequence (semantic guided neighbouring).

    Pixels with the same prompt stay in raster order; the published code leaves their order to an unstable sort.
    In training the prompt is sampled (Gumbel softmax) with a straight-through gradient, as published. In evaluation
    it is the most likely one, without a gradient; the published code samples there too, so results vary between runs.
    """

    def __init__(self, channels: int, states: int, hidden: int, rank: int, prompts: int) -> None:
        super().__init__()
        self.in_proj = nn.Sequential(nn.Conv2d(channels, hidden, 1))
        self.CPE = nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden))
        self.embeddingB = nn.Embedding(prompts, rank)
        nn.init.uniform_(self.embeddingB.weight, -1 / prompts, 1 / prompts)
        self.route = nn.Sequential(nn.Linear(channels, channels // 3), nn.GELU(), nn.Linear(channels // 3, prompts))
        self.selectiveScan = PromptedScan(hidden, states)
        self.out_norm = nn.LayerNorm(hidden)
        self.out_proj = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, shared: Tensor) -> Tensor:
        """``shared``: the layer's factor of the prompt matrix, (rank, states)."""
        height, width = x.shape[1:3]
        prompt, choice = self._prompt(self.route(x.flatten(1, 2)), self.embeddingB.weight @ shared)
        # int16: the cost of CUDA's radix sort is proportional to the number of bits of the keys.
        alike = Permutation.of(choice.to(torch.int16).argsort(dim=1, stable=True))
        x = convolve(self.in_proj, x)
        x = x * convolve(self.CPE, x).sigmoid()
        # The prompts stay in raster order, as published, although the pixels are reordered.
        y = self.selectiveScan(reorder(x.flatten(1, 2), alike), prompt)
        y = self.out_proj(self.out_norm(y))
        return reorder(y, alike.back).unflatten(1, (height, width))

    def _prompt(self, scores: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Every pixel's prompt (B, L, states), and its index in the pool (B, L).

        The published network first applies a log-softmax to ``scores``. It is left out: it shifts all scores of a
        pixel by one constant, which changes neither their softmax nor their argmax.
        """
        if not self.training:
            choice = scores.argmax(-1)
            return pool[choice], choice
        noise = torch.empty_like(scores, dtype=torch.promote_types(scores.dtype, torch.float32)).exponential_().log_()
        soft = (scores - noise).softmax(-1)
        choice = soft.argmax(-1)
        return _OneHot.apply(soft, choice) @ pool, choice


class _OneHot(torch.autograd.Function):
    """One-hot vectors of a choice, with a straight-through gradient to the probabilities."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, choice: Tensor) -> Tensor:
        return torch.zeros_like(soft).scatter_(-1, choice.unsqueeze(-1), 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class AttentiveLayer(nn.Module):
    """Window attention, then the attentive state-space module, each with a gated MLP."""

    def __init__(
        self, channels: int, heads: int, window: int, shift: int, states: int, hidden: int, rank: int, prompts: int
    ) -> None:
        super().__init__()
        self.shifted = shift > 0
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(channels) for _ in range(4))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((channels,), 1e-4)) for _ in range(2))
        self.wqkv = nn.Linear(channels, 3 * channels)
        self.win_mhsa = Attention(channels, heads, window)
        self.assm = AttentiveStateSpace(channels, states, hidden, rank, prompts)
        self.convffn1, self.convffn2 = (GatedMlp(channels, hidden) for _ in range(2))
        self.embeddingA = nn.Embedding(rank, states)
        nn.init.uniform_(self.embeddingA.weight, -1 / rank, 1 / rank)

    def forward(self, x: Tensor, windows: Windows, bias: Tensor) -> Tensor:
        y = x + self._attention(self.norm1(x), windows, bias)
        y = y + self.convffn1(self.norm2(y))
        x = y + x * self.scale1
        y = x + self.assm(self.norm3(x), self.embeddingA.weight)
        y = y + self.convffn2(self.norm4(y))
        return y + x * self.scale2

    def _attention(self, x: Tensor, windows: Windows, bias: Tensor) -> Tensor:
        order, mask = (windows.shifted, windows.mask) if self.shifted else (windows.plain, None)
        y = reorder(x.flatten(1, 2), order).unflatten(1, windows.mask.shape[:2])
        y = self.win_mhsa(self.wqkv(y), bias, mask)
        return reorder(y.flatten(1, 2), order.back).view_as(x)


class ResidualGroup(nn.Module):
    """A sequence of attentive layers, every second one shifted by half a window."""

    def __init__(self, layers: list[AttentiveLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, windows: Windows, biases: Sequence[Tensor]) -> Tensor:
        for layer, bias in zip(self.layers, biases, strict=True):
            x = layer(x, windows, bias)
        return x


@register_architecture("mambairv2")
class MambaIRv2(WindowedNetwork):
    """MambaIRv2 with the gated MLPs and the upsampler of the lightweight networks ("pixelshuffledirect").

    Args:
        scale: 1, 2, 3 or 4.
        channels: width of the trunk, a multiple of ``heads``.
        blocks: attentive state-space blocks (ASSB).
        layers: attentive layers in each.
        heads: number of attention heads.
        window: side of the attention windows.
        states: states of the scan per channel (d_state).
        mlp_ratio: hidden width of the MLPs and state-space modules divided by ``channels``; the width must be even.
        rank: rank of the factorised prompt matrix.
        prompts: number of prompts in each layer's pool.

    Shape:
        (B, 3, H, W) in [0, 1] to (B, 3, scale H, scale W), not clamped.
    """

    def __init__(
        self,
        scale: int,
        channels: int = 48,
        blocks: int = 4,
        layers: int = 5,
        heads: int = 4,
        window: int = 16,
        states: int = 8,
        mlp_ratio: float = 1.0,
        rank: int = 32,
        prompts: int = 64,
    ) -> None:
        hidden = int(mlp_ratio * channels)
        if channels % heads:
            raise ValueError(f"channels is {channels}; expected a multiple of heads, {heads}")
        if hidden % 2:
            raise ValueError(f"mlp_ratio {mlp_ratio} x {channels} channels is {hidden}; expected an even number")
        super().__init__(scale, channels, window, repeat_border=True)
        self.depth = layers
        self.register_buffer("relative_position_index_SA", relative_position_index(window))  # for checkpoints only

        def layer(index: int) -> AttentiveLayer:
            shift = index % 2 * (window // 2)
            return AttentiveLayer(channels, heads, window, shift, states, hidden, rank, prompts)

        groups = (ResidualGroup([layer(i) for i in range(layers)]) for _ in range(blocks))
        self.layers = nn.ModuleList(ResidualBlock(channels, group) for group in groups)
        self.apply(initialise)

    def body(self, x: Tensor, windows: Windows) -> Tensor:
        biases = self.biases()
        for i, block in enumerate(self.layers):
            x = block(x, windows, biases[i * self.depth : (i + 1) * self.depth])
        return x


@register_model
def mambairv2_light(scale: int) -> ModelSpec:
    """MambaIRv2-light: 4 blocks of 5 layers, 48 channels, windows of 16; 0.77 M parameters at x2."""
    trunk = {"channels": 48, "blocks": 4, "layers": 5, "heads": 4, "window": 16, "mlp_ratio": 1.0}
    return ModelSpec("mambairv2", scale, {**trunk, "states": 8, "rank": 32, "prompts": 64})
