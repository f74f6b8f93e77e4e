from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idc_ray.models.window_attention import attend_in_windows, position_bias, relative_position_index, shift_mask


def literal(qkv: Tensor, table: Tensor, window: int, shift: int) -> Tensor:
    """Pixel by pixel: it sees the pixels of its window that are really near, and not across the border."""
    batch, height, width, channels = qkv.shape[0], *qkv.shape[1:3], qkv.shape[3] // 3
    heads = table.shape[1]
    size = channels // heads
    out = torch.empty(batch, height, width, channels, dtype=qkv.dtype)
    pixels = [(y, x) for y in range(height) for x in range(width)]

    def place(y: int, x: int) -> tuple[int, int]:
        # Windows at the border are cut by it: with a shift there is one more of them than without, the first short.
        return (y - shift) // window, (x - shift) // window

    for image in range(batch):
        for y, x in pixels:
            seen = [(j, i) for j, i in pixels if place(j, i) == place(y, x)]
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                q, k, v = qkv[image].split(channels, -1)
                scores = torch.stack(
                    [
                        q[y, x, part] @ k[j, i, part] / size**0.5
                        + table[(y - j + window - 1) * (2 * window - 1) + x - i + window - 1, head]
                        for j, i in seen
                    ]
                )
                values = torch.stack([v[j, i, part] for j, i in seen])
                out[image, y, x, part] = scores.softmax(0) @ values
    return out


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(4, 8), (8, 12), (4, 4)])
def test_it_is_attention_among_the_pixels_of_a_window(height: int, width: int, shift: int) -> None:
    """Catches swapped rows and columns, mixed up heads, and pixels that see each other around the border."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn((2, height, width, 18), generator=generator, dtype=torch.float64)
    table = torch.randn((49, 2), generator=generator, dtype=torch.float64)
    bias = position_bias(table, relative_position_index(4))
    mask = shift_mask(height, width, 4, shift) if shift else None
    torch.testing.assert_close(attend_in_windows(qkv, bias, 4, shift, mask), literal(qkv, table, 4, shift))
