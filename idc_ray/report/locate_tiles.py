"""Positions of tiles and cells in their source image, found by comparing pixels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: Pixels compared over the whole image; only positions where these agree are compared in full.
PROBES = 6


@dataclass(frozen=True)
class Box:
    """A rectangle of an LR image, in LR pixels.

    Attributes:
        top, left, height, width: the rectangle.
        kind: ``crop``: the whole tile has these pixels; ``cell``: one cell of the tile has; ``start``: the position of
            the initial tile, whose pixels were changed.
    """

    top: int
    left: int
    height: int
    width: int
    kind: Literal["crop", "cell", "start"]


def boxes_of_tile(
    lr: NDArray[np.uint8], tile: NDArray[np.uint8], corner: tuple[int, int] | None, cells: int, blend: int
) -> list[Box]:
    """Positions of a tile or its cells in an image.

    Args:
        lr: uint8 (h, w, 3), the image.
        tile: uint8 (p, p, 3).
        corner: stored (top, left) of the tile; None if it has none.
        cells: cells per side of a tile.
        blend: width of the blend between cells in pixels; the blended pixels are not compared.

    Returns:
        One box of kind ``crop``, else one for each cell that is found, else one of kind ``start``, else none.
    """
    side = tile.shape[0]
    if corner is not None:
        top, left = corner
        if np.array_equal(lr[top : top + side, left : left + side], tile):
            return [Box(top, left, side, side, "crop")]
    found = [] if cells < 2 else _cells(lr, tile, cells, blend)
    if found or corner is None:
        return found
    return [Box(*corner, side, side, "start")]


def _cells(lr: NDArray[np.uint8], tile: NDArray[np.uint8], cells: int, blend: int) -> list[Box]:
    side, margin = tile.shape[0], -(-blend // 2)
    edges = [index * side // cells for index in range(cells + 1)]
    spans = [
        (first, last, first + margin * (first > 0), last - margin * (last < side)) for first, last in pairwise(edges)
    ]
    boxes = []
    for top, bottom, inner_top, inner_bottom in spans:
        for left, right, inner_left, inner_right in spans:
            position = find_patch(lr, tile[inner_top:inner_bottom, inner_left:inner_right])
            if position is not None:
                corner = position[0] - (inner_top - top), position[1] - (inner_left - left)
                boxes.append(Box(*corner, bottom - top, right - left, "cell"))
    return boxes


def find_patch(image: NDArray[np.uint8], patch: NDArray[np.uint8]) -> tuple[int, int] | None:
    """(top, left) of the first exact occurrence of a uint8 patch (h, w, 3) in an image; None if there is none.

    Patches of a single colour are not searched, as they occur at many positions.
    """
    if patch.size == 0 or patch.shape[0] > image.shape[0] or patch.shape[1] > image.shape[1]:
        return None
    packed, wanted = _packed(image), _packed(patch)
    if (wanted == wanted[0, 0]).all():
        return None
    height, width = wanted.shape
    rows, columns = packed.shape[0] - height + 1, packed.shape[1] - width + 1
    fits = np.ones((rows, columns), bool)
    steps = np.linspace(0, 1, PROBES)
    for y, x in zip((steps * (height - 1)).astype(int), (steps[::-1] * (width - 1)).astype(int), strict=True):
        fits &= packed[y : y + rows, x : x + columns] == wanted[y, x]
    for top, left in np.argwhere(fits):
        if np.array_equal(packed[top : top + height, left : left + width], wanted):
            return int(top), int(left)
    return None


def _packed(image: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Each pixel as one integer: red << 16 | green << 8 | blue."""
    red, green, blue = np.moveaxis(image.astype(np.uint32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue, np.uint32)
