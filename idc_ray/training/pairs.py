"""Image pairs of any size in flat 8-bit buffers, and random patches cut from them on the device.

The patches of a step are a pure function of (seed, step), independent of interruptions and of the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idc_ray.condensation.seeding import generator

#: HR of a pair that is trained on with online labels.
NO_HR = np.empty((0, 0, 3), np.uint8)

#: Number of steps whose tensors are prepared together.
STEPS_AT_ONCE = 64


class Feed(Protocol):
    """Source of training patches, in two stages: tensors that select the patches, and a function of these tensors.

    The function runs on the device only, so that a CUDA graph can capture it.
    """

    def inputs(self, step: int, rank: int, world: int) -> tuple[Tensor, ...]:
        """Arguments of :meth:`patches` for worker ``rank`` of ``world`` in step ``step`` (from 0).

        Returns:
            Tensors on the device, of the same shapes in every step.
        """
        ...

    def patches(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """LR and HR patches of a step: float32 (b, 3, p, p) and (b, 3, scale p, scale p) in [0, 1], on the device."""
        ...

    def names(self, step: int) -> list[str]:
        """Names of the images that the patches of a step come from, for messages; empty if unknown."""
        ...


class StepRows:
    """Tensors by step, created on the CPU for many steps at once and copied to the device together.

    Args:
        make: maps a range of steps to a tensor whose first dimension is the steps.
        device: device of the tensors.
    """

    def __init__(self, make: Callable[[range], Tensor], device: torch.device) -> None:
        self._make, self._device = make, device
        self._steps, self._rows = range(0), torch.empty(0)

    def __getitem__(self, step: int) -> Tensor:
        if step not in self._steps:
            first = step - step % STEPS_AT_ONCE
            self._steps = range(first, first + STEPS_AT_ONCE)
            rows = self._make(self._steps)
            # A copy from pageable memory would wait for all queued work.
            self._rows = rows.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else rows
        return self._rows[step - self._steps.start]


@dataclass(frozen=True)
class Pair:
    """One image or tile to train on.

    Attributes:
        name: name in messages.
        lr: uint8 (h, w, 3).
        hr: uint8 (scale h, scale w, 3), or :data:`NO_HR`.
        weight: relative probability of drawing one of its pixels, at least 0.
    """

    name: str
    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8]
    weight: float = 1.0


@dataclass(frozen=True)
class PairTable:
    """Concatenated pairs, so that a single gather gives patches of all of them.

    Attributes:
        names: names of the n pairs.
        scale: HR side / LR side.
        lr: uint8, all LR images concatenated, each (h, w, 3).
        hr: uint8, all HR images concatenated; pair i begins at scale^2 times its offset in ``lr``. Empty with
            :data:`NO_HR`.
        sizes: int64 (n, 2), LR height and width.
        offsets: int64 (n,), offset of each pair in ``lr``.
        chances: float64 (n,), relative probability of drawing each pair, at least 0.
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
        """Concatenate pairs, in the given order.

        Raises:
            ValueError: no pairs, an HR image that is not ``scale`` times its LR image (or missing, but not of all
                pairs), or all weights are 0.
        """
        names, lrs, hrs, sizes, weights = [], [], [], [], []
        with_hr = None
        for pair in pairs:
            height, width = pair.lr.shape[:2]
            with_hr = pair.hr.size > 0 if with_hr is None else with_hr
            shape = (scale * height, scale * width, 3) if with_hr else NO_HR.shape
            if pair.lr.shape != (height, width, 3) or pair.hr.shape != shape:
                raise ValueError(f"{pair.name}: LR is {pair.lr.shape}, HR {pair.hr.shape}; expected factor {scale}")
            if pair.lr.dtype != np.uint8 or pair.hr.dtype != np.uint8:
                raise ValueError(f"{pair.name}: LR is {pair.lr.dtype}, HR {pair.hr.dtype}; expected uint8")
            names.append(pair.name)
            lrs.append(torch.from_numpy(np.ascontiguousarray(pair.lr)).flatten())
            hrs.append(torch.from_numpy(np.ascontiguousarray(pair.hr)).flatten())
            sizes.append((height, width))
            weights.append(pair.weight * height * width)
        if not sum(weights) > 0:
            raise ValueError(f"{len(names)} pairs have a total weight of {sum(weights)}; expected more than 0")
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

    def to(self, device: torch.device) -> PairTable:
        """Move the pixels to ``device``; patches are drawn on the CPU."""
        return replace(self, lr=self.lr.to(device), hr=self.hr.to(device))


class Patches:
    """Random patches of a table: a :class:`Feed` whose steps are pure functions of the seed.

    A pair is drawn with probability proportional to its weight and number of LR pixels, a position in it uniformly.

    Args:
        table: the pairs.
        patch_size: side of the LR patch.
        batch_size: patches of one step.
        seed: seed of all random numbers.

    Raises:
        ValueError: a pair is smaller than the patch.
    """

    def __init__(self, table: PairTable, patch_size: int, batch_size: int, seed: int) -> None:
        if int(table.sizes.min()) < patch_size:
            small = int(table.sizes.amin(1).argmin())
            raise ValueError(
                f"{table.names[small]}: LR of {int(table.sizes[small, 1])} x {int(table.sizes[small, 0])} "
                f"is smaller than a patch of {patch_size}"
            )
        self.table, self.patch_size, self.batch_size, self.seed = table, patch_size, batch_size, seed
        self._bounds = table.chances.cumsum(0)
        self._sides = [torch.arange(patch_size * factor, device=table.lr.device) for factor in (1, table.scale)]
        self._rows: dict[tuple[int, int], StepRows] = {}

    def draw(self, step: int) -> Tensor:
        """The patches of step ``step``, a pure function of (seed, step): int64 (4, b).

        Rows: index of the pair; top and left in LR pixels; flip and rotation, 0 to 7: bit 0 flips rows, bit 1 flips
        columns, bit 2 transposes.
        """
        random = generator(self.seed, "patches", step)
        uniform = torch.rand(4, self.batch_size, dtype=torch.float64, generator=random)
        # right=True: pairs of weight 0 are never drawn
        pair = torch.searchsorted(self._bounds, uniform[0] * self._bounds[-1], right=True)
        pair = pair.clamp_max(len(self._bounds) - 1)
        positions = self.table.sizes[pair] - self.patch_size + 1
        top, left = ((uniform[1 + axis] * positions[:, axis]).long() for axis in (0, 1))
        return torch.stack([pair, top, left, (uniform[3] * 8).long()])

    def inputs(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, ...]:
        """See :class:`Feed`; one tensor, int64 (2, 3, b), as :meth:`patches` expects it."""
        if (rank, world) not in self._rows:
            self._rows[rank, world] = StepRows(
                lambda steps: torch.stack(
                    [self._affine(self.draw(step).tensor_split(world, 1)[rank]) for step in steps]
                ),
                self.table.lr.device,
            )
        return (self._rows[rank, world][step],)

    def patches(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Feed`; channels last in memory. HR patches of a table without HR are empty.

        Args:
            inputs: one tensor; for LR and HR, each patch's first pixel in the table, and the offsets in pixels to the
                next row and to the next column.
        """
        (rows,) = inputs
        out: list[Tensor] = []
        for pixels, side, (first, down, right) in zip((self.table.lr, self.table.hr), self._sides, rows, strict=True):
            if not len(pixels):
                return out[0], out[0][..., :0]
            index = (first[:, None] + down[:, None] * side)[:, :, None] + (right[:, None] * side)[:, None, :]
            chosen = pixels.view(-1, 3).index_select(0, index.flatten())
            out.append(chosen.view(*index.shape, 3).permute(0, 3, 1, 2).float().div_(255))
        return out[0], out[1]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """The patches of a step."""
        return self.patches(*self.inputs(step, rank, world))

    def names(self, step: int) -> list[str]:
        """Names of the pairs that a step draws from."""
        return sorted({self.table.names[i] for i in self.draw(step)[0].tolist()})

    def _affine(self, draw: Tensor) -> Tensor:
        """(2, 3, b) for :meth:`patches`: position (i, j) of a patch is pixel ``first + i down + j right``."""
        pair, top, left, symmetry = draw
        flip_rows, flip_columns, transpose = (symmetry & bit > 0 for bit in (1, 2, 4))
        levels = []
        for factor in (1, self.table.scale):
            begin = self.table.offsets[pair] // 3 * factor**2
            width = self.table.sizes[pair, 1] * factor
            last = self.patch_size * factor - 1
            row = top * factor + flip_rows * last
            column = left * factor + flip_columns * last
            by_row = torch.where(flip_rows, -width, width)
            by_column = torch.where(flip_columns, -1, 1)
            down, right = torch.where(transpose, by_column, by_row), torch.where(transpose, by_row, by_column)
            levels.append(torch.stack([begin + row * width + column, down, right]))
        return torch.stack(levels)
