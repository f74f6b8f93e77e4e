"""Cells, the parts of which a tile is composed, and their Fourier features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idc_ray.condensation.crops import Crops
from idc_ray.condensation.difficulty import TileWeights, Weighting
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.condensation.transfer import to_device
from idc_ray.condensation.windows import candidate_positions, window_means

#: Maximum number of searched cells of an image, in total and per cell of its tiles; those of the largest weight.
MOST_CELLS, MOST_PER_CELL = 8192, 16

#: Top and left of a cell that is from no place of the image.
NOWHERE = -(2**30)


@dataclass(frozen=True)
class Cells:
    """Small crops of an image, or parts of tiles.

    Attributes:
        positions: int64 (n, 2), top and left in the image, LR pixels; ``NOWHERE`` if there is no such place.
        feature_sums: float32 (n, m, 2), weighted sums of the Fourier features of one set over the cell's positions.
        weight_sums: float32 (n,), sums of the weights; the characteristic function is ``feature_sums / weight_sums``.
    """

    positions: Tensor
    feature_sums: Tensor
    weight_sums: Tensor

    @classmethod
    def join(cls, parts: list[Cells]) -> Cells:
        """Concatenate several."""
        columns = zip(*((part.positions, part.feature_sums, part.weight_sums) for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


def cell_side(tile: int, count: int) -> int:
    """Side of a cell of a tile with ``count`` a side; where they do not divide it, some are cut to fit."""
    return -(-tile // count)


def _edges(tile: int, count: int) -> list[int]:
    return [index * tile // count for index in range(count + 1)]


def mosaic(tiles: Tensor, lr: Tensor, positions: Tensor, blend: int) -> Tensor:
    """Tiles with some of their cells replaced by crops of an image.

    Neighbouring cells are blended, as each continues beyond its border in the image: an edge between them would be
    sharper than any in an LR image, and students would learn what a strong teacher makes of it (docs/results.md).
    Beyond the image's border its outermost pixels are repeated.

    Args:
        tiles: uint8 (..., 3, p, p).
        lr: uint8 (3, H, W).
        positions: (..., cells^2, 2) top and left of each cell's crop, row by row; ``NOWHERE``: the cell stays.
        blend: LR pixels from one cell's own to its neighbour's own, half of them in each; 0: they meet in an edge.

    Returns:
        uint8 (..., 3, p, p), a new tensor.
    """
    count, size = round(positions.shape[-2] ** 0.5), tiles.shape[-1]
    edges, shares = _edges(size, count), _shares(size, count, blend)
    whole = int(shares[:, 0].sum()) ** 2
    shares = to_device(shares, lr.device)
    within = torch.arange(size, device=lr.device)
    total = torch.zeros(tiles.shape, dtype=torch.int64, device=lr.device)
    for index, corners in enumerate(positions.unbind(-2)):
        row, column = divmod(index, count)
        rows, columns = (
            (within + (corners[..., dim, None] - edges[cell])).clamp(0, lr.shape[1 + dim] - 1)
            for dim, cell in enumerate((row, column))
        )
        crops = lr[:, rows[..., :, None], columns[..., None, :]].movedim(0, -3)
        stays = corners[..., 0, None, None, None] == NOWHERE
        total += shares[row, :, None] * shares[column] * torch.where(stays, tiles, crops)
    return ((total + whole // 2) // whole).to(torch.uint8)  # whole numbers: the same bytes on every device


def _shares(size: int, count: int, blend: int) -> Tensor:
    """int64 (count, size): how much of each pixel of a row is each cell's; all cells of a pixel have as much together.

    A share falls in equal steps over ``blend`` pixels, the edge in their middle.
    """
    whole, pixels = max(1, 2 * blend), torch.arange(size)
    begun = [torch.full((size,), whole)]  # how much is this cell's, or one's after it
    begun += [(2 * (pixels - edge) + 1 + blend).clamp(0, whole) for edge in _edges(size, count)[1:-1]]
    return torch.stack(begun) - torch.stack([*begun[1:], torch.zeros(size, dtype=torch.int64)])


def cell_windows(offsets: Tensor, side: int, reader: FeatureReader) -> Tensor:
    """float32 (n, P): 1 at those of a tile's P local features that lie in the cell at each of ``offsets`` (n, 2)."""
    index = torch.arange(reader.positions)
    down, across = (
        ((index >= first[:, None]) & (index <= first[:, None] + side - reader.kernel)).float() for first in offsets.T
    )
    return (down[:, :, None] * across[:, None]).flatten(1)


def tile_offsets(tile: int, count: int) -> Tensor:
    """(count^2, 2) top and left of a tile's cells, row by row."""
    edges = torch.tensor(_edges(tile, count)[:-1])
    return torch.cartesian_prod(edges, edges).view(-1, 2)


@dataclass(frozen=True)
class CellGrid:
    """Cells of an image, each a part of one of its crops, whose features it has.

    Attributes:
        positions: int64 (n, w, 2), top and left in the image of w cells in each of n crops; on the CPU.
        chosen: bool (n, w), which of them are looked at: each place once; on the CPU.
        windows: float32 (w, P), see :func:`cell_windows`.
        weights: float32 (n, P), what the crops' local features weigh as positions of tiles.
    """

    positions: Tensor
    chosen: Tensor
    windows: Tensor
    weights: Tensor

    @classmethod
    def of_image(
        cls, crops: Crops, hardness: Tensor, weighting: Weighting, tile_weights: TileWeights, side: int, wanted: int
    ) -> CellGrid:
        """Cells at every quarter of a side in each crop; of very many those that the image weighs most.

        Args:
            crops: of the image.
            hardness: (H, W), what places of the image weigh by.
            weighting: of the image.
            tile_weights: what positions of tiles weigh, see ``loss.tile_weights``.
            side: of a cell, LR pixels.
            wanted: how many cells the image's tiles have.
        """
        reader, device = crops.reader, crops.lr.device
        offsets = candidate_positions(reader.tile, reader.tile, side, max(1, side // 4))
        positions = crops.positions[:, None] + offsets
        places = positions.flatten(0, 1)
        _, first = np.unique(places.numpy(), axis=0, return_index=True)  # crops at the far borders overlap
        most = max(MOST_CELLS, MOST_PER_CELL * wanted)
        if len(first) > most:
            # Independent of position: if all weights are equal, the first ones would be at the top of the image.
            first = np.sort(first)[torch.randperm(len(first), generator=torch.Generator().manual_seed(0)).numpy()]
            weights = weighting(window_means(hardness, places[first], side))
            first = first[weights.argsort(descending=True, stable=True)[:most].numpy()]
        chosen = torch.zeros(len(places), dtype=torch.bool)
        chosen[first] = True
        windows = cell_windows(offsets, side, reader)
        weights = weighting.of_tiles(tile_weights)(crops.at_local_features(hardness)).flatten(1)
        return cls(positions, chosen.view(positions.shape[:2]), to_device(windows, device), to_device(weights, device))

    def columns(self, weights: Tensor) -> Tensor:
        """Weights (b, w, P) of the local features in each cell, from those of crops (b, P)."""
        return self.windows * weights[:, None]

    def cells(self, crops: slice, products: Tensor, columns: Tensor) -> Cells:
        """The chosen cells of some crops, from their Fourier sums (b, w, m, 2) and :meth:`columns`."""
        places, device = self.chosen[crops].flatten().nonzero().squeeze(1), products.device
        positions, index = self.positions[crops].flatten(0, 1)[places], to_device(places, device)
        feature_sums, weight_sums = (
            values.flatten(0, 1).index_select(0, index) for values in (products, columns.sum(2))
        )
        return Cells(to_device(positions, device), feature_sums, weight_sums)
