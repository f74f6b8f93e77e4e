"""Division of tiles into network calls, such that an image's results do not depend on the images condensed with it.

The last bits of a float result depend on the batch size, and Adam makes several grey levels of a last-bit difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FixedBatches:
    """How tiles are divided into network calls.

    Attributes:
        size: most tiles of one call, at least 1.
        shared: True: tiles of different images share calls, each of exactly ``size`` tiles: the last one is filled up
            with zeros. False: a call has tiles of one image only, so that its size depends on that image alone.
    """

    size: int
    shared: bool = False

    def slices(self, counts: Sequence[int]) -> Iterator[slice]:
        """Calls over the concatenated tiles of several images, ``counts`` tiles each."""
        begin = 0
        for count in [sum(counts)] if self.shared else counts:
            for first in range(begin, begin + count, self.size):
                yield slice(first, min(first + self.size, begin + count))
            begin += count

    def pad(self, tiles: Tensor) -> Tensor:
        """The tiles (n <= size, ...) of one call, with zeros appended to (size, ...) if calls are shared."""
        missing = self.size - tiles.shape[0]
        if missing == 0 or not self.shared:
            return tiles
        return torch.cat([tiles, tiles.new_zeros(missing, *tiles.shape[1:])])

    def run(self, function: Callable[[Tensor], Tensor], tiles: Tensor) -> Tensor:
        """``function`` over one image's ``tiles`` (n, ...), call by call; the results of padding are dropped."""
        parts = [tiles[part] for part in self.slices([len(tiles)])]
        return torch.cat([function(self.pad(part))[: len(part)] for part in parts])
