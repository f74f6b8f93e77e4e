"""Near-duplicates by perceptual hash."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Bits in which hashes of like pictures differ at most. Independent hashes come so near once in 2 * 10^11 pairs.
NEAR = 6

_SIDE, _KEPT = 32, 8
_DCT = np.cos(np.pi / _SIDE * np.outer(np.arange(_KEPT), np.arange(_SIDE) + 0.5))  # DCT-II, the lowest frequencies


def perceptual_hash(image: NDArray[np.uint8]) -> int:
    """pHash (Zauner 2010) of uint8 (H, W, 3): 64 bits, which of the lowest 8 x 8 frequencies are above their median.

    Images that look alike, resized, recompressed or brightened, differ in a few bits, others in about 32.
    """
    small = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    spectrum = _DCT @ np.asarray(small, float) @ _DCT.T
    return int.from_bytes(np.packbits(spectrum > np.median(spectrum)).tobytes())


def near_duplicates(hashes: Iterable[int], distance: int) -> list[int | None]:
    """For each hash the place of an earlier one that differs in at most ``distance`` bits; None: there is none.

    Only hashes without an earlier one are compared with, so that a chain of small differences has no effect. Time is
    quadratic: a minute for about 200,000 images that all differ.
    """
    values = np.fromiter(hashes, np.uint64)
    distinct = np.empty(len(values), np.int64)
    count = 0
    found: list[int | None] = []
    for index, value in enumerate(values):
        differing = np.bitwise_count(values[distinct[:count]] ^ value)
        nearest = int(differing.argmin()) if count else 0
        if count and differing[nearest] <= distance:
            found.append(int(distinct[nearest]))
            continue
        distinct[count] = index
        count += 1
        found.append(None)
    return found
