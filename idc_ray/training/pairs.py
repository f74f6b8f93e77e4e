"""Image pairs of any sizes in flat 8-bit buffers, and random patches cut from them on the device.

What a step draws is a pure function of (seed, step): a resumed run, or one with more workers, sees the same patches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idc_ray.condensation.seeding import generator

__all__ = ["Draw", "Feed", "Pair", "PairTable", "Patches"]


class Feed(Protocol):
    """Where the patches of a training come from."""

    def batch(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """What worker ``rank`` of ``world`` trains on in step ``step`` (from 0).

        Returns:
            float32 (b, 3, p, p) and (b, 3, scale p, scale p) in [0, 1], on the device.
        """
        ...

    def names(self, step: int) -> list[str]:
        """Where the patches of a step came from, for messages; empty if that is not known."""
        ...


@dataclass(frozen=True)
class Pair:
    """One image or tile to train on.

    Attributes:
        name: what messages call it.
        lr: uint8 (h, w, 3).
        hr: uint8 (scale h, scale w, 3).
        weight: how often one of its pixels is drawn, relative to those of other pairs; at least 0.
    """

    name: str
    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8]
    weight: float = 1.0


@dataclass(frozen=True)
class PairTable:
    """Pairs laid end to end, so that patches of all of them are one gather.

    Attributes:
        names: of the n pairs.
        scale: HR side / LR side.
        lr: uint8, all LR images one after another, each (h, w, 3).
        hr: uint8, all HR images likewise; pair i begins at scale^2 times its place in ``lr``.
        sizes: int64 (n, 2), LR height and width.
        offsets: int64 (n,), where each begins in ``lr``.
        chances: float64 (n,), not negative: how often each is drawn, relative to the others.
    """

    names: tuple[str, ...]
    scale: int
    lr: Tensor
    hr: Tensor
    sizes: Tensor
    offsets: Tensor
    chances: Tensor

    @classmethod
    def build(cls, pairs: Iterable[Pair], scale: int) -> PairTable:
        """Lay pairs end to end, in the given order.

        Raises:
            ValueError: no pairs, an HR image that is not ``scale`` times its LR, or weights that are all 0.
        """
        names, lrs, hrs, sizes, weights = [], [], [], [], []
        for pair in pairs:
            height, width = pair.lr.shape[:2]
            if pair.lr.shape != (height, width, 3) or pair.hr.shape != (scale * height, scale * width, 3):
                raise ValueError(f"{pair.name}: LR is {pair.lr.shape}, HR {pair.hr.shape}; expected factor {scale}")
            if pair.lr.dtype != np.uint8 or pair.hr.dtype != np.uint8:
                raise ValueError(f"{pair.name}: LR is {pair.lr.dtype}, HR {pair.hr.dtype}; expected uint8")
            names.append(pair.name)
            lrs.append(torch.from_numpy(np.ascontiguousarray(pair.lr)).flatten())
            hrs.append(torch.from_numpy(np.ascontiguousarray(pair.hr)).flatten())
            sizes.append((height, width))
            weights.append(pair.weight * height * width)
        if not sum(weights) > 0:
            raise ValueError(f"{len(names)} pairs with a weight of {sum(weights)} in all; expected more than 0")
        lengths = torch.tensor([len(lr) for lr in lrs])
        return cls(
            tuple(names),
            scale,
            torch.cat(lrs),
            torch.cat(hrs),
            torch.tensor(sizes),
            lengths.cumsum(0) - lengths,
            torch.tensor(weights, dtype=torch.float64),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of pixels."""
        return self.lr.numel() + self.hr.numel()

    @property
    def shortest_side(self) -> int:
        """The largest patch that fits every pair, LR pixels."""
        return int(self.sizes.min())

    def to(self, device: torch.device) -> PairTable:
        """The pixels on ``device``; what is drawn is decided on the CPU."""
        return replace(self, lr=self.lr.to(device), hr=self.hr.to(device))


@dataclass(frozen=True)
class Draw:
    """Which patches a step takes; all int64 (b,).

    Attributes:
        pair: index of the pair.
        top: first row, LR pixels.
        left: first column, LR pixels.
        symmetry: 0 to 7, one of the square's: bit 0 flips rows, bit 1 flips columns, bit 2 transposes.
    """

    pair: Tensor
    top: Tensor
    left: Tensor
    symmetry: Tensor

    def part(self, rank: int, world: int) -> Draw:
        """What worker ``rank`` of ``world`` takes of it."""
        fields = (t.tensor_split(world)[rank] for t in (self.pair, self.top, self.left, self.symmetry))
        return Draw(*fields)


class Patches:
    """Random patches of a table: a :class:`Feed` whose steps are pure functions of the seed.

    A pair is drawn with probability proportional to its weight and number of LR pixels, a place in it uniformly.

    Args:
        table: the pairs.
        patch_size: side of the LR patch.
        batch_size: patches of one step.
        seed: of everything random.

    Raises:
        ValueError: a pair is smaller than the patch.
    """

    def __init__(self, table: PairTable, patch_size: int, batch_size: int, seed: int) -> None:
        if table.shortest_side < patch_size:
            small = int(table.sizes.amin(1).argmin())
            raise ValueError(
                f"{table.names[small]}: LR of {int(table.sizes[small, 1])} x {int(table.sizes[small, 0])} "
                f"is smaller than a patch of {patch_size}"
            )
        self.table, self.patch_size, self.batch_size, self.seed = table, patch_size, batch_size, seed
        self._bounds = table.chances.cumsum(0)

    def draw(self, step: int) -> Draw:
        """What step ``step`` takes: a pure function of (seed, step)."""
        uniform = self._uniform(step)
        # right: a pair of weight 0 has no width, and is never hit
        pair = torch.searchsorted(self._bounds, uniform[0] * self._bounds[-1], right=True)
        return self._places(pair.clamp_max(len(self._bounds) - 1), uniform)

    def draw_each(self, step: int) -> Draw:
        """One patch of each pair, in order; ``batch_size`` is their number."""
        return self._places(torch.arange(len(self.table.names)), self._uniform(step))

    def _uniform(self, step: int) -> Tensor:
        return torch.rand(4, self.batch_size, dtype=torch.float64, generator=generator(self.seed, "patches", step))

    def _places(self, pair: Tensor, uniform: Tensor) -> Draw:
        places = self.table.sizes[pair] - self.patch_size + 1
        top, left = ((uniform[1 + axis] * places[:, axis]).long() for axis in (0, 1))
        return Draw(pair, top, left, (uniform[3] * 8).long())

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """See :class:`Feed`."""
        return self.cut(self.draw(step).part(rank, world))

    def names(self, step: int) -> list[str]:
        """The pairs that a step draws from."""
        return sorted({self.table.names[i] for i in self.draw(step).pair.tolist()})

    def cut(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """The patches, float32 (b, 3, p, p) and (b, 3, scale p, scale p) in [0, 1], channels last in memory."""
        table, scale = self.table, self.table.scale
        device = table.lr.device
        begin, width = table.offsets[draw.pair], table.sizes[draw.pair, 1]
        out = []
        for pixels, factor in ((table.lr, 1), (table.hr, scale)):
            index = _indices(
                begin * factor**2,
                width * factor,
                draw.top * factor,
                draw.left * factor,
                draw.symmetry,
                self.patch_size * factor,
                device,
            )
            out.append(pixels[index].permute(0, 3, 1, 2).float().div_(255))
        return out[0], out[1]


def _indices(
    begin: Tensor, width: Tensor, top: Tensor, left: Tensor, symmetry: Tensor, side: int, device: torch.device
) -> Tensor:
    """Places (b, side, side, 3) of patches in a flat buffer, the symmetry applied."""
    numbers = torch.stack([begin, width, top, left, symmetry]).to(device)[..., None, None]
    begin, width, top, left, symmetry = numbers
    rows, columns = torch.meshgrid(*[torch.arange(side, device=device)] * 2, indexing="ij")
    row = torch.where(symmetry & 4 > 0, columns, rows)
    column = torch.where(symmetry & 4 > 0, rows, columns)
    row = torch.where(symmetry & 1 > 0, side - 1 - row, row)
    column = torch.where(symmetry & 2 > 0, side - 1 - column, column)
    first = begin + 3 * ((top + row) * width + left + column)
    return first[..., None] + torch.arange(3, device=device)
