"""Batches of images for the workers: large images alone, fewer and fewer to a batch towards the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["Batches", "expected_pixels", "plan_batches", "single_images"]

#: Pixels of a small image. As many of these as a batch may have are together in one; of larger images fewer.
SMALL_PIXELS = 500_000

#: A batch takes at most this part of what is left for each worker.
SHARE_LEFT = 0.5

#: Bytes of a pixel in files of photographs: with and without loss.
LOSSY, LOSSLESS = 0.35, 1.7
LOSSY_NAMES = r"\.(jpe?g|webp|jp2|j2k|avif|heic)$"


@dataclass(frozen=True)
class Batches:
    """Images in batches.

    Attributes:
        rows: manifest rows, ``size`` for each batch. A batch of fewer images is filled with rows of nulls, since
            Ray Data has batches of one size.
        size: rows of a batch.
        count: how many batches.
    """

    rows: pa.Table
    size: int
    count: int


def single_images(manifest: pa.Table) -> Batches:
    """Each image by itself."""
    return Batches(manifest, 1, manifest.num_rows)


def plan_batches(manifest: pa.Table, most: int, workers: int, most_pixels: float | None = None) -> Batches:
    """Divide images, in their order but for the last ones, of which the largest are first.

    Args:
        manifest: the images.
        most: images in a batch, at least 1.
        workers: that share the batches, at least 1.
        most_pixels: pixels in a batch of several images; None: of ``most`` small ones.
    """
    pixels = expected_pixels(manifest)
    room = most * SMALL_PIXELS if most_pixels is None else most_pixels
    size = max(1, math.floor(min(most, room / float(np.median(pixels)))))
    order = _order(pixels, 2 * workers * min(room, size * float(pixels.mean())))
    counts = _counts(pixels[order].tolist(), size, room, workers)
    if any(count < size for count in counts):
        starts = np.cumsum([0, *counts[:-1]])[:, None]
        at = np.minimum(starts + np.arange(size), len(order) - 1)
        order = np.where(np.arange(size) < np.array(counts)[:, None], order[at], -1).ravel()
        manifest = _nullable(manifest)
    moved = np.flatnonzero(order != np.arange(len(order)))
    head = int(moved[0]) if len(moved) else len(order)  # is not copied
    rest = pa.array(order[head:], mask=order[head:] < 0)
    return Batches(pa.concat_tables([manifest.slice(0, head), manifest.take(rest)]), size, len(counts))


def expected_pixels(manifest: pa.Table) -> NDArray[np.float64]:
    """Pixels of each image as far as its name and its bytes tell; images of unknown size are taken for small ones."""
    sizes = manifest["size"].to_numpy()
    lossy = pc.match_substring_regex(manifest["source"], LOSSY_NAMES, ignore_case=True).to_numpy()
    return np.where(sizes > 0, sizes / np.where(lossy, LOSSY, LOSSLESS), SMALL_PIXELS)


def _order(pixels: NDArray[np.float64], end: float) -> NDArray[np.int64]:
    """Indices: the images that have the last ``end`` pixels come with the largest first."""
    left = np.cumsum(pixels[::-1])[::-1]
    first = int(np.argmax(left <= end)) if left[-1] <= end else len(pixels) - 1
    indices = np.arange(len(pixels))
    return np.concatenate([indices[:first], first + np.argsort(-pixels[first:], kind="stable")])


def _counts(pixels: list[float], size: int, room: float, workers: int) -> list[int]:
    """Images of each batch."""
    left, begin = sum(pixels), 0
    counts = []
    while begin < len(pixels):
        limit = room if workers == 1 else min(room, SHARE_LEFT * left / workers)
        count, total = 1, pixels[begin]
        while count < size and begin + count < len(pixels) and total + pixels[begin + count] <= limit:
            total += pixels[begin + count]
            count += 1
        counts.append(count)
        begin, left = begin + count, left - total
    return counts


def _nullable(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))
