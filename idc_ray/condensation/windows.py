"""Windows of an image: where crops lie, how a map scores them, which are chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from idc_ray.images.tiles import crop_starts


def candidate_positions(height: int, width: int, size: int, stride: int) -> Tensor:
    """(n, 2) integer (top, left) of all windows, row by row; the last ones are flush with the border."""
    tops = torch.tensor(crop_starts(height, size, stride))
    lefts = torch.tensor(crop_starts(width, size, stride))
    return torch.cartesian_prod(tops, lefts)


def cut(image: Tensor, positions: Tensor, size: int) -> Tensor:
    """Windows (n, C, size, size) of an image (C, H, W) at (n, 2) positions."""
    return torch.stack([image[:, top : top + size, left : left + size] for top, left in positions.tolist()])


def window_means(maps: Tensor, positions: Tensor, size: int) -> Tensor:
    """Means of maps over windows: (..., H, W) and (n, 2) to float64 (..., n), by an integral image."""
    integral = torch.nn.functional.pad(maps.double().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    top, left = positions.T
    bottom, right = top + size, left + size
    total = (
        integral[..., bottom, right]
        - integral[..., top, right]
        - integral[..., bottom, left]
        + integral[..., top, left]
    )
    return total / size**2


def choose(order: Iterable[int], positions: Tensor, size: int, count: int) -> list[int]:
    """The first ``count`` windows of ``order`` that do not overlap; asks for no more of ``order`` than it needs.

    Where a greedy choice leaves no free place, windows that overlap what was chosen least come next,
    so the result always has ``count`` members as long as ``order`` has.
    """
    return list(islice(_free_ones_first(order, positions.tolist(), size), count))


def _free_ones_first(order: Iterable[int], corners: list[list[int]], size: int) -> Iterator[int]:
    waiting, chosen = order, list[int]()
    for allowed in (0.0, 0.25, 0.5, 1.0):
        later = []
        for candidate in waiting:
            if all(_overlap(corners[candidate], corners[other], size) <= allowed for other in chosen):
                chosen.append(candidate)
                yield candidate
            else:
                later.append(candidate)
        waiting = later


def _overlap(a: list[int], b: list[int], size: int) -> float:
    """Share of a window that lies in another."""
    down = max(0, size - abs(a[0] - b[0]))
    across = max(0, size - abs(a[1] - b[1]))
    return down * across / size**2
