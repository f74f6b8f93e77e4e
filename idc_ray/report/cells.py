"""Where in its image each part of a tile was taken, recovered from the pixels: a copy is equal to its original."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "boxes_of_tile", "find_patch"]

#: Pixels compared over the whole image before the places that are left are compared in full.
PROBES = 6


@dataclass(frozen=True)
class Box:
    """A rectangle of an LR image, in LR pixels.

    Attributes:
        top, left, height, width: the rectangle.
        kind: ``crop``: the whole tile is these pixels; ``cell``: a cell of the tile is; ``start``: the tile began as
            these pixels, which were changed since.
    """

    top: int
    left: int
    height: int
    width: int
    kind: Literal["crop", "cell", "start"]


def boxes_of_tile(
    lr: NDArray[np.uint8], tile: NDArray[np.uint8], corner: tuple[int, int] | None, cells: int, blend: int
) -> list[Box]:
    """Where a tile is from.

    Args:
        lr: uint8 (h, w, 3), the image.
        tile: uint8 (p, p, 3).
        corner: (top, left) that is stored of the tile; None where it has none.
        cells: cells per side of a tile.
        blend: width of the blend between cells in pixels; the blended pixels are not compared.

    Returns:
        One box of kind ``crop``; or a box for each cell that is found; or where none is, the start; or nothing.
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
            place = find_patch(lr, tile[inner_top:inner_bottom, inner_left:inner_right])
            if place is not None:
                corner = place[0] - (inner_top - top), place[1] - (inner_left - left)
                boxes.append(Box(*corner, bottom - top, right - left, "cell"))
    return boxes


def find_patch(image: NDArray[np.uint8], patch: NDArray[np.uint8]) -> tuple[int, int] | None:
    """(top, left) of the first place where uint8 (h, w, 3) is in an image, pixel for pixel; None if it is nowhere.

    A patch of one colour is nowhere: it would be found in any sky.
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
    """Red, green and blue in one number."""
    red, green, blue = np.moveaxis(image.astype(np.uint32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue, np.uint32)
