"""Matching by choice: tiles exchange cells for real ones until the mosaic has the image's distribution (ours).

Learned pixels come near the distribution of an image's hard places by drawing strokes into flat ones. Real cells
come there as they were photographed. The loss is the one that pixels are learned by; what is sought is its minimum
over a finite set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from idc_ray.condensation.cells import NOWHERE, Cells
from idc_ray.condensation.characteristic import discrepancy
from idc_ray.config import Loss

__all__ = ["exchange"]


@torch.no_grad()
def exchange(offered: Cells, begin: Cells, side: int, image: Tensor, groups: Tensor, loss: Loss, sweeps: int) -> Tensor:
    """Exchange each cell in turn for the one that leaves the smallest loss, until a sweep changes nothing.

    A cell is exchanged only for one that overlaps no other in use. One that a tile begins with has no other place.

    Args:
        offered: n cells of the image.
        begin: g q cells that the tiles begin with, tile by tile.
        side: of a cell, LR pixels.
        image: (m, 2), characteristic function of the image.
        groups: (g, m, 2), of the share of the image that each tile stands for.
        loss: levels and discrepancy.
        sweeps: most rounds over all cells.

    Returns:
        int64 (g, q, 2), where in the image each cell is from in the end; ``NOWHERE``: it has stayed.
    """
    search = _Search(Cells.join([offered, begin]), len(offered.positions), side, image, groups, loss)
    for _ in range(sweeps):
        before = search.chosen.clone()
        for place in range(search.chosen.shape[1]):
            for tile in range(len(groups)):
                search.improve(tile, place)
        if torch.equal(before, search.chosen):
            break
    stayed = search.chosen == search.begin
    return search.cells.positions[search.chosen].masked_fill(stayed.unsqueeze(2), NOWHERE)


class _Search:
    """The cells that are in use (``chosen``), and what follows from them."""

    def __init__(self, cells: Cells, offered: int, side: int, image: Tensor, groups: Tensor, loss: Loss) -> None:
        self.cells, self.side, self.image, self.groups, self.loss = cells, side, image, groups, loss
        self.begin = torch.arange(offered, len(cells.positions)).view(len(groups), -1)
        self.chosen = self.begin.clone()
        self.sums = cells.sums[self.begin].sum(1)
        self.masses = cells.masses[self.begin].sum(1)
        self.overlaps = torch.zeros(len(cells.positions), dtype=torch.int64)
        self.elsewhere = torch.arange(len(cells.positions)) >= offered  # what a tile begins with has one place
        for index in self.begin.flatten().tolist():
            self._count(index, 1)

    def improve(self, tile: int, place: int) -> None:
        """Exchange one cell for the best there is, the first of equals; it may be the same."""
        current, own = int(self.chosen[tile, place]), int(self.begin[tile, place])
        self._swap(tile, current, -1)
        forbidden = self.elsewhere.clone()
        forbidden[own] = False
        forbidden |= self.overlaps > 0
        forbidden[current] = False  # of starts that overlap
        best = int(self._costs(tile).cpu().masked_fill(forbidden, torch.inf).argmin())
        self._swap(tile, best, 1)
        self.chosen[tile, place] = best

    def _swap(self, tile: int, index: int, sign: int) -> None:
        self.sums[tile] += sign * self.cells.sums[index]
        self.masses[tile] += sign * self.cells.masses[index]
        self._count(index, sign)

    def _count(self, index: int, sign: int) -> None:
        position = self.cells.positions[index]
        if int(position[0]) != NOWHERE:
            near = (self.cells.positions - position).abs() < self.side
            self.overlaps[near.all(1)] += sign

    def _costs(self, tile: int) -> Tensor:
        """Loss (n,) that each cell would leave in a tile that lacks one, but for what is the same for all of them."""
        kind, alpha, beta = self.loss.discrepancy, self.loss.alpha, self.loss.beta
        added, mass = self.cells.sums, self.cells.masses[:, None, None]
        cost = added.new_zeros(len(added))
        if self.loss.instance:
            everything = (self.sums.sum(0) + added) / (self.masses.sum() + mass)
            cost += self.loss.instance * discrepancy(everything, self.image, kind, alpha, beta)
        if self.loss.group:
            own = (self.sums[tile] + added) / (self.masses[tile] + mass)
            cost += self.loss.group / len(self.groups) * discrepancy(own, self.groups[tile], kind, alpha, beta)
        return cost
