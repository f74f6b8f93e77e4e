"""Attention within square windows, shifted in every other layer (Swin, Liu et al. 2021, arXiv 2103.14030).

Maps are in window order here, (B, windows, window^2, C), with sides that are multiples of the window. Norms and
linear layers act on each position separately, so a layer reorders its map once, with :func:`reorder` and one of
:class:`Windows`, instead of partitioning queries, keys and values. Masks and orders depend on the map's size only. They
are computed in each forward pass, with a few small kernels: tensors cached across calls would have to outlive every
CUDA graph that reads them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from idc_ray.models.permutation import Permutation

#: Added to the scores of pairs of positions that are masked; the value of the published networks.
MASKED = -100.0

#: Limit of the second and third dimension of a CUDA grid. torch's fused attention launches one block for each head and
#: each sequence of a batch.
GRID_LIMIT = 65535


class Windows(NamedTuple):
    """Permutations and mask of a map's windows."""

    plain: Permutation
    """Raster order to window order."""

    shifted: Permutation
    """Raster order to the order of the shifted windows, which wrap around at the borders."""

    shift: Permutation
    """Window order to the order of the shifted windows."""

    mask: Tensor
    """Added to the scores in shifted windows, (windows, window^2, window^2): see :func:`shift_mask`."""


def windows_of(height: int, width: int, window: int, device: torch.device) -> Windows:
    """Windows of an H x W map; shifted windows begin half a window further down and right."""
    shift = window // 2
    raster = torch.arange(height * width, device=device).view(1, height, width, 1)
    plain = Permutation.of(_to_windows(raster, window).flatten())
    shifted = Permutation.of(_to_windows(raster.roll((-shift, -shift), (1, 2)), window).flatten())
    between = Permutation(plain.inverse[shifted.order], shifted.inverse[plain.order])
    return Windows(plain, shifted, between, shift_mask(height, width, window, shift, device))


def attend(qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention among the positions of each window.

    On CUDA this is torch's fused attention, which does not store the scores. With a bias that needs a gradient,
    torch selects its memory-efficient kernel, whose backward pass is deterministic in torch's deterministic mode
    (according to torch's source; not measured).

    Args:
        qkv: (B, windows, window^2, 3 C), queries, keys and values of all heads in this order.
        bias: (heads, window^2, window^2), added to the scores.
        mask: (windows, window^2, window^2), added to the scores of all heads.

    Returns:
        (B, windows, window^2, C), the heads concatenated.
    """
    qkv = qkv.unflatten(-1, (3, bias.shape[0], -1)).permute(3, 0, 1, 4, 2, 5)
    out = _fused(qkv, bias, mask) if _can_be_fused(qkv) else _explicit(qkv, bias, mask)
    return out.flatten(-2)


def position_biases(tables: Tensor, window: int) -> Tensor:
    """Biases (..., heads, window^2, window^2) from tables (..., (2 window - 1)^2, heads) with a row for each offset.

    Equal to indexing with :func:`relative_position_index`, but by views of the table: the backward pass of indexing is
    a scatter, on CUDA a sort.
    """
    side = 2 * window - 1
    offsets = tables.transpose(-1, -2).unflatten(-1, (side, side))
    # The view of the table that starts at a query's position has the offsets to all keys, the last key first.
    biases = offsets.unfold(-2, window, 1).unfold(-2, window, 1).flip(-2, -1)
    return biases.flatten(-4, -3).flatten(-2)


def relative_position_index(window: int) -> Tensor:
    """(window^2, window^2) integers: for each pair of positions, its row in a table of (2 window - 1)^2 offsets."""
    rows, columns = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    down, right = rows[:, None] - rows, columns[:, None] - columns
    return (down + window - 1) * (2 * window - 1) + right + window - 1


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """(windows, window^2, window^2): -100 for positions that share a window only by wrapping around, else 0."""
    # Only the last window of a row or column contains a border of the map, ``shift`` positions before its end.
    down, right = (torch.arange(side, device=device) >= side - shift for side in (height, width))
    regions = _to_windows((2 * down[:, None] + right)[None, :, :, None], window)[0, :, :, 0]
    return (regions[:, None, :] != regions[:, :, None]) * MASKED


def _can_be_fused(qkv: Tensor) -> bool:
    _, batch, windows, heads, _, _ = qkv.shape
    return qkv.is_cuda and windows * max(batch, heads) <= GRID_LIMIT


def _fused(qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """(3, B, windows, heads, window^2, size) to (B, windows, window^2, heads, size)."""
    size, vector = qkv.shape[-1], 16 // qkv.element_size()
    if size % vector:  # the kernel loads vectors of 16 bytes; zeros change neither scores nor outputs
        qkv = pad(qkv, (0, vector - size % vector))
    # The kernel has two batch axes and broadcasts a bias along the first. The windows are merged into the axis with
    # which the bias need not be copied for each image.
    if mask is None:
        merged = 1
    else:
        merged, bias = 2, (bias + mask[:, None]).flatten(0, 1)
    q, k, v = qkv.flatten(merged, merged + 1)
    out = scaled_dot_product_attention(q, k, v, bias.to(q.dtype), scale=size**-0.5)
    return out.unflatten(merged - 1, qkv.shape[merged : merged + 2]).transpose(2, 3)[..., :size]


def _explicit(qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """As :func:`_fused`, with the scores in memory."""
    q, k, v = qkv
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + (bias if mask is None else bias + mask[:, None])
    return (scores.softmax(-1) @ v).transpose(2, 3)


def _to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B, windows, window^2, C)."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
