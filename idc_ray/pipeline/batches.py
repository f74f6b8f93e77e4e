"""Batches of images for the workers: large images alone, smaller batches towards the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

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
        rows: manifest rows, ``size`` per batch. Smaller batches are padded with rows of nulls, as batches of Ray Data
            have one size.
        size: number of rows per batch.
        count: number of batches.
    """

    rows: pa.Table
    size: int
    count: int


def single_images(manifest: pa.Table) -> Batches:
    """Batches of one image each."""
    return Batches(manifest, 1, manifest.num_rows)


def plan_batches(manifest: pa.Table, most: int, workers: int, most_pixels: float | None = None) -> Batches:
    """Divide images into batches, in their order, except that the largest of the last ones come first.

    Args:
        manifest: the images.
        most: maximum number of images per batch, at least 1.
        workers: number of workers, at least 1.
        most_pixels: maximum number of pixels in a batch of several images; None: those of ``most`` small images.
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
    moved = np.flatnonzero(order != np.arange(len(order)))
    head = int(moved[0]) if len(moved) else len(order)  # is not copied
    rest = pa.array(order[head:], mask=order[head:] < 0)
    return Batches(pa.concat_tables([manifest.slice(0, head), manifest.take(rest)]), size, len(counts))


def expected_pixels(manifest: pa.Table) -> NDArray[np.float64]:
    """Pixels of each image, estimated from its format and file size; images of unknown size count as small."""
    sizes = manifest["size"].to_numpy()
    lossy = pc.match_substring_regex(manifest["source"], LOSSY_NAMES, ignore_case=True).to_numpy()
    return np.where(sizes > 0, sizes / np.where(lossy, LOSSY, LOSSLESS), SMALL_PIXELS)


def _order(pixels: NDArray[np.float64], end: float) -> NDArray[np.int64]:
    """Indices that sort the images with the last ``end`` pixels by size, largest first."""
    left = np.cumsum(pixels[::-1])[::-1]
    first = int(np.argmax(left <= end)) if left[-1] <= end else len(pixels) - 1
    indices = np.arange(len(pixels))
    return np.concatenate([indices[:first], first + np.argsort(-pixels[first:], kind="stable")])


def _counts(pixels: list[float], size: int, room: float, workers: int) -> list[int]:
    """Number of images of each batch."""
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
