"""Applying a network to an image: in tiles, and as a self-ensemble."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from idc_ray.images.tiles import crop_starts

Image = NDArray[np.uint8]
FloatUpscale = Callable[[Image], NDArray[np.float32]]
"""uint8 (h, w, 3) to float32 (scale h, scale w, 3) in [0, 255], not rounded."""
Value = TypeVar("Value", np.uint8, np.float32)
OnTile = Callable[[int, int], None]
"""Called before each tile with the number of finished tiles and of all tiles."""


def image_upscale(
    upscale: FloatUpscale,
    scale: int,
    tile: int | None = None,
    overlap: int = 16,
    ensemble: bool = False,
    on_tile: OnTile | None = None,
) -> Callable[[Image], Image]:
    """A function that upscales 8-bit images with a network, tiling and self-ensemble.

    Args:
        upscale: the network.
        scale: its factor.
        tile: see :func:`tiled`; None: no tiling.
        overlap: see :func:`tiled`.
        ensemble: see :func:`self_ensemble`.
        on_tile: see :func:`tiled`.

    Raises:
        ValueError: the overlap is out of range.
    """
    whole = rounded(self_ensemble(upscale) if ensemble else upscale)
    return whole if tile is None else tiled(whole, scale, tile, overlap, on_tile)


def tiled(
    upscale: Callable[[Image], NDArray[Value]], scale: int, tile: int, overlap: int, on_tile: OnTile | None = None
) -> Callable[[Image], NDArray[Value]]:
    """Upscale in overlapping tiles, so that the network's memory does not grow with the image.

    Half of the overlap is dropped at each inner border. With an overlap of at least the network's receptive
    field, the result equals that of the whole image.

    Args:
        upscale: applied to each tile.
        scale: its factor.
        tile: side of a tile, LR pixels.
        overlap: LR pixels that neighbouring tiles share, less than ``tile``.
        on_tile: called before each tile.

    Raises:
        ValueError: the overlap is out of range.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap}; expected 0 to {tile - 1}, less than the tile's side")

    def run(lr: Image) -> NDArray[Value]:
        height, width = lr.shape[:2]
        spans = list(product(*(_spans(length, tile, overlap) for length in (height, width))))
        out: NDArray[Value] | None = None
        for done, ((top, bottom, first, last), (left, right, start, end)) in enumerate(spans):
            if on_tile is not None:
                on_tile(done, len(spans))
            part = upscale(np.ascontiguousarray(lr[top:bottom, left:right]))
            if out is None:
                out = np.empty((scale * height, scale * width, 3), part.dtype)
            inside = part[scale * (first - top) : scale * (last - top), scale * (start - left) : scale * (end - left)]
            out[scale * first : scale * last, scale * start : scale * end] = inside
        assert out is not None  # every image has at least one tile
        return out

    return run


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(begin, end) of each tile in one dimension, and (first, last) of the part that is kept."""
    size = min(tile, length)
    begins = crop_starts(length, size, max(1, tile - overlap))
    cuts = [0, *[(after + before + size) // 2 for before, after in pairwise(begins)], length]
    return [(begin, begin + size, cuts[i], cuts[i + 1]) for i, begin in enumerate(begins)]


def self_ensemble(upscale: FloatUpscale) -> FloatUpscale:
    """Mean over the eight flips and rotations of the input, inverted on the output (EDSR, section 3.3)."""

    def run(lr: Image) -> NDArray[np.float32]:
        total: NDArray[np.float32] | None = None
        for turns in range(4):
            for flip in (False, True):
                turned = np.rot90(lr[:, ::-1] if flip else lr, turns)
                back = np.rot90(upscale(np.ascontiguousarray(turned)), -turns)
                back = back[:, ::-1] if flip else back
                total = back.astype(np.float32) if total is None else total + back
        assert total is not None
        return total / np.float32(8)

    return run


def rounded(upscale: FloatUpscale) -> Callable[[Image], Image]:
    """Clip and round the output to 8 bits."""
    return lambda lr: np.clip(np.rint(upscale(lr)), 0, 255).astype(np.uint8)
