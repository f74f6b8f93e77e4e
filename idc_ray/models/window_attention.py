"""Attention within square windows, shifted in every other block (Swin, Liu et al. 2021, arXiv 2103.14030).

Maps are channels last here, (B, H, W, C), with sides that the window divides. What a network's blocks need
besides their weights depends on the map's size only, so it is made once a pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attend_in_windows", "position_bias", "relative_position_index", "shift_mask"]

#: Added to the scores of positions that must not see each other: what the published networks add.
MASKED = -100.0


def attend_in_windows(qkv: Tensor, bias: Tensor, window: int, shift: int, mask: Tensor | None) -> Tensor:
    """Softmax attention of all positions in each window.

    Args:
        qkv: (B, H, W, 3 C), queries, keys and values of all heads in this order.
        bias: (heads, window^2, window^2), added to the scores.
        window: side.
        shift: the windows begin this far down and right, going round at the borders.
        mask: :func:`shift_mask`, for a shift only.

    Returns:
        (B, H, W, C), the heads side by side.
    """
    height, width, heads = qkv.shape[1], qkv.shape[2], bias.shape[0]
    if shift:
        qkv = qkv.roll((-shift, -shift), (1, 2))
    # (3, B, windows, heads, window^2, C / heads)
    q, k, v = _to_windows(qkv, window).unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = scores + (bias if mask is None else bias + mask[:, None])
    out = (scores.softmax(-1) @ v).transpose(2, 3).flatten(-2)
    out = _from_windows(out, window, height, width)
    return out.roll((shift, shift), (1, 2)) if shift else out


def relative_position_index(window: int) -> Tensor:
    """(window^2, window^2) integers: which row of a table of (2 window - 1)^2 offsets a pair of positions has."""
    rows, columns = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    down, right = rows[:, None] - rows, columns[:, None] - columns
    return (down + window - 1) * (2 * window - 1) + right + window - 1


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """(heads, window^2, window^2) from a table (offsets, heads)."""
    return table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """(windows, window^2, window^2): 0, or -100 between positions that only the going round brought together."""

    def region(side: int) -> Tensor:
        place = torch.arange(side, device=device)
        return (place >= side - window).int() + (place >= side - shift).int()

    regions = region(height)[:, None] * 3 + region(width)
    regions = _to_windows(regions[None, :, :, None], window)[0, :, :, 0]
    return (regions[:, None, :] != regions[:, :, None]) * MASKED


def _to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B, windows, window^2, C)."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`_to_windows`."""
    x = x.unflatten(2, (window, window)).unflatten(1, (height // window, width // window))
    return x.transpose(2, 3).flatten(1, 2).flatten(2, 3)
