"""Cells: the parts that a tile is a mosaic of, and the Fourier features of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idc_ray.condensation.difficulty import Weighting
from idc_ray.condensation.rlff import FrequencyBank, fourier_maps
from idc_ray.condensation.targets import RealImage, standardise
from idc_ray.condensation.windows import candidate_positions, cut, window_means

__all__ = ["NOWHERE", "Cells", "cell_side", "cells_of_image", "cells_of_tile", "mosaic"]

#: Cells of an image that are looked at, and for each cell of its tiles; of more, those of the largest weight.
MOST_CELLS, MOST_PER_CELL = 8192, 16

#: Top and left of a cell that is from no place of the image.
NOWHERE = -(2**30)


@dataclass(frozen=True)
class Cells:
    """Small crops of an image, or parts of tiles.

    Attributes:
        positions: int64 (n, 2), top and left in the image, LR pixels; ``NOWHERE`` if there is no such place.
        sums: float32 (n, m, 2), means over the cell's local features of the weighted Fourier features of one set.
        masses: float32 (n,), means of the weights; ``sums / masses`` is the characteristic function.
    """

    positions: Tensor
    sums: Tensor
    masses: Tensor

    @classmethod
    def join(cls, parts: list[Cells]) -> Cells:
        """All of them, one after another."""
        columns = zip(*((part.positions, part.sums, part.masses) for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


def cell_side(tile: int, count: int) -> int:
    """Side of a cell of a tile with ``count`` a side; where they do not divide it, some are cut to fit."""
    return -(-tile // count)


def _edges(tile: int, count: int) -> list[int]:
    return [index * tile // count for index in range(count + 1)]


def mosaic(tile: Tensor, lr: Tensor, positions: Tensor, blend: int) -> Tensor:
    """A tile with some of its cells exchanged for crops of an image.

    Neighbours are blended into each other, as each goes on beyond its border where it is from: an edge between them
    would be as sharp as none in an LR image, and what a strong teacher makes of it students learn (docs/results.md).

    Args:
        tile: uint8 (3, p, p).
        lr: uint8 (3, H, W).
        positions: (cells^2, 2) top and left of each cell's crop, row by row; ``NOWHERE``: the cell stays.
        blend: LR pixels from one cell's own to its neighbour's own, half of them in each; 0: they meet in an edge.

    Returns:
        uint8 (3, p, p), a new tensor.
    """
    count, size = round(len(positions) ** 0.5), tile.shape[-1]
    edges, shares = _edges(size, count), _shares(size, count, blend).to(lr.device)
    total = torch.zeros(tile.shape, dtype=torch.int64, device=lr.device)
    for index, storage in enumerate(positions.tolist()):
        row, column = divmod(index, count)
        corner = (storage[0] - edges[row], storage[1] - edges[column])
        pixels = tile if storage[0] == NOWHERE else _window(lr, corner, size)
        total += shares[row, :, None] * shares[column] * pixels
    whole = int(shares[:, 0].sum()) ** 2
    return ((total + whole // 2) // whole).to(torch.uint8)  # whole numbers: the same bytes on every device


def _shares(size: int, count: int, blend: int) -> Tensor:
    """int64 (count, size): how much of each pixel of a row is each cell's; all cells of a pixel have as much together.

    A share falls in equal steps over ``blend`` pixels, the edge in their middle.
    """
    whole, pixels = max(1, 2 * blend), torch.arange(size)
    begun = [torch.full((size,), whole)]  # how much is this cell's, or one's after it
    begun += [(2 * (pixels - edge) + 1 + blend).clamp(0, whole) for edge in _edges(size, count)[1:-1]]
    return torch.stack(begun) - torch.stack([*begun[1:], torch.zeros(size, dtype=torch.int64)])


def _window(image: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    """(3, size, size) of an image at (top, left); beyond its border the outermost pixels are repeated."""
    rows, columns = (
        (torch.arange(size, device=image.device) + first).clamp(0, length - 1)
        for first, length in zip(corner, image.shape[1:], strict=True)
    )
    return image[:, rows[:, None], columns]


@torch.no_grad()
def cells_of_tile(
    features: Tensor, weights: Tensor, bank: FrequencyBank, count: int, corner: tuple[int, int] | None
) -> Cells:
    """The cells that a tile has.

    Args:
        features: (c, p, p), standardised.
        weights: (positions, positions) of the tile's local features.
        bank: the run's frequencies, of which the first set is looked at.
        count: cells a side.
        corner: where in the image the tile is from, if from one place.
    """
    size = features.shape[-1]
    edges = torch.tensor(_edges(size, count)[:-1])
    offsets = torch.cartesian_prod(edges, edges).view(-1, 2)
    positions = torch.full_like(offsets, NOWHERE) if corner is None else offsets + torch.tensor(corner)
    return Cells(positions, *_measured(features, weights, bank, offsets, cell_side(size, count)))


@torch.no_grad()
def cells_of_image(
    real: RealImage, bank: FrequencyBank, hardness: Tensor, weighting: Weighting, side: int, wanted: int
) -> Cells:
    """Crops of an image for cells, from the features of the crops that it was measured in.

    A cell lies in one crop, and its features are those that it has there. Cells start every quarter of a side.

    Args:
        real: the measured image.
        bank: the run's frequencies, of which the first set is looked at.
        hardness: (H, W), what places of the image weigh by.
        weighting: what positions of tiles weigh.
        side: of a cell, LR pixels.
        wanted: how many cells the image's tiles have.
    """
    crops, offsets = _chosen_places(real, hardness, side, wanted)
    reader = real.crops.reader
    hard = reader.centres(cut(hardness[None], real.positions, reader.tile).squeeze(1))
    parts = []
    for call in real.crops.calls:
        features = standardise(real.crops.features(call), real.mean, real.std)
        for index in range(call.start, call.stop):
            here = offsets[crops == index]
            if len(here):
                weights = weighting(hard[index]).to(features.device)
                measured = _measured(features[index - call.start], weights, bank, here, side)
                parts.append(Cells(real.positions[index] + here, *measured))
    return Cells.join(parts)


def _measured(
    features: Tensor, weights: Tensor, bank: FrequencyBank, offsets: Tensor, side: int
) -> tuple[Tensor, Tensor]:
    """Sums and masses of the cells at ``offsets`` (n, 2) of a tile."""
    window = side - (features.shape[-1] - weights.shape[-1])  # local features that lie wholly in the cell
    maps = fourier_maps(features, bank.directions[0], bank.scales) * weights
    return window_means(maps, offsets, window).permute(2, 1, 0).float(), window_means(weights, offsets, window).float()


def _chosen_places(real: RealImage, hardness: Tensor, side: int, wanted: int) -> tuple[Tensor, Tensor]:
    """For each cell that is looked at its crop (n,) and its offset in it (n, 2), crop by crop."""
    tile = real.crops.reader.tile
    inside = candidate_positions(tile, tile, side, max(1, side // 4))
    crops = torch.arange(len(real.positions)).repeat_interleave(len(inside))
    offsets = inside.repeat(len(real.positions), 1)
    positions = real.positions[crops] + offsets
    first: dict[tuple[int, int], int] = {}
    for index, (top, left) in enumerate(positions.tolist()):  # crops at the far borders overlap those before them
        first.setdefault((top, left), index)
    chosen = torch.tensor(list(first.values()))
    most = max(MOST_CELLS, MOST_PER_CELL * wanted)
    if len(chosen) > most:
        # In no order of place: where all weigh the same, the first ones would be the image's top.
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
        weights = real.weighting(window_means(hardness, positions[chosen], side))
        chosen = chosen[weights.argsort(descending=True, stable=True)[:most]].sort().values
    return crops[chosen], offsets[chosen]
