"""Ways to put an image through a network: in tiles, as the mean over the square's symmetries."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from idc_ray.images.tiles import crop_starts

__all__ = ["FloatUpscale", "image_upscale", "rounded", "self_ensemble", "tiled"]

Image = NDArray[np.uint8]
FloatUpscale = Callable[[Image], NDArray[np.float32]]
"""uint8 (h, w, 3) to float32 (scale h, scale w, 3) in [0, 255], not rounded."""


def image_upscale(
    upscale: FloatUpscale, scale: int, tile: int | None = None, overlap: int = 16, ensemble: bool = False
) -> Callable[[Image], Image]:
    """The whole way of an image through a network, to 8 bits.

    Args:
        upscale: the network.
        scale: its factor.
        tile: see :func:`tiled`; None: images go through whole.
        overlap: likewise.
        ensemble: see :func:`self_ensemble`.

    Raises:
        ValueError: the overlap is out of range.
    """
    if ensemble:
        upscale = self_ensemble(upscale)
    if tile is not None:
        upscale = tiled(upscale, scale, tile, overlap)
    return rounded(upscale)


def tiled(upscale: FloatUpscale, scale: int, tile: int, overlap: int) -> FloatUpscale:
    """Overlapping tiles, so that memory does not grow with the image.

    Half of the overlap is dropped at each inner border; with an overlap of at least the network's receptive
    field the result is that of the whole image.

    Args:
        upscale: what each tile goes through.
        scale: its factor.
        tile: side of a tile, LR pixels.
        overlap: LR pixels that neighbours share, less than ``tile``.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap}; expected 0 to {tile - 1}, less than the tile")

    def run(lr: Image) -> NDArray[np.float32]:
        height, width = lr.shape[:2]
        out = np.empty((scale * height, scale * width, 3), np.float32)
        rows, columns = (_spans(length, tile, overlap) for length in (height, width))
        for top, bottom, first, last in rows:
            for left, right, start, end in columns:
                part = upscale(np.ascontiguousarray(lr[top:bottom, left:right]))
                inside = part[
                    scale * (first - top) : scale * (last - top), scale * (start - left) : scale * (end - left)
                ]
                out[scale * first : scale * last, scale * start : scale * end] = inside
        return out

    return run


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(begin, end) of each tile in one dimension, and (first, last) of the part of it that is kept."""
    size = min(tile, length)
    begins = crop_starts(length, size, max(1, tile - overlap))
    cuts = [0, *[(after + before + size) // 2 for before, after in pairwise(begins)], length]
    return [(begin, begin + size, cuts[i], cuts[i + 1]) for i, begin in enumerate(begins)]


def self_ensemble(upscale: FloatUpscale) -> FloatUpscale:
    """Mean over the eight flips and rotations of the input, each undone on the output (EDSR, section 3.3)."""

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
    """To 8 bits."""
    return lambda lr: np.clip(np.rint(upscale(lr)), 0, 255).astype(np.uint8)
