"""Calls of a network with a fixed number of tiles.

Float results depend on the batch size, and Adam makes several grey levels of a last-bit difference.
So every call of the teacher has exactly ``slots`` tiles; free places are filled with dummies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["chunks", "pad", "run"]


def pad(tiles: Tensor, slots: int) -> Tensor:
    """``tiles`` (n <= slots, ...) with zeros appended to (slots, ...)."""
    missing = slots - tiles.shape[0]
    return tiles if missing == 0 else torch.cat([tiles, tiles.new_zeros(missing, *tiles.shape[1:])])


def chunks(counts: Sequence[int], slots: int, shared: bool) -> Iterator[slice]:
    """Cut the concatenation of several images' tiles into calls of at most ``slots``.

    Args:
        counts: tiles of each image.
        slots: tiles of one call.
        shared: whether tiles of different images may share a call; otherwise each image starts a new one.
    """
    begin = 0
    for count in [sum(counts)] if shared else counts:
        for first in range(begin, begin + count, slots):
            yield slice(first, min(first + slots, begin + count))
        begin += count


def run(function: Callable[[Tensor], Tensor], tiles: Tensor, slots: int) -> Tensor:
    """``function`` over ``tiles`` (n, ...), ``slots`` at a time; the results of the dummies are dropped."""
    done = [
        function(pad(part, slots))[: part.shape[0]]
        for part in (tiles[s] for s in chunks([tiles.shape[0]], slots, True))
    ]
    return torch.cat(done)
