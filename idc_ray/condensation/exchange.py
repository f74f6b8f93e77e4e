"""Matching by choice: tiles exchange cells for real ones until the mosaic has the image's distribution.

Learned pixels come near the distribution of an image's hard places by drawing strokes into flat ones. Real cells
come there as they were photographed, but for the pixels at their seams, which are blended. The loss is the one that
pixels are learned by; what is sought is its minimum over a finite set.
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
        for storage in range(search.chosen.shape[1]):
            for tile in range(len(groups)):
                search.improve(tile, storage)
        if torch.equal(before, search.chosen):
            break
    stayed = search.chosen == search.begin
    return search.cells.positions[search.chosen].masked_fill(stayed.unsqueeze(2), NOWHERE)


class _Search:
    """The cells that are in use (``chosen``), and what follows from them."""

    def __init__(self, cells: Cells, offered: int, side: int, image: Tensor, groups: Tensor, loss: Loss) -> None:
        # Double precision: the squares of near matches are small differences of large numbers.
        cells = Cells(cells.positions, cells.sums.double(), cells.masses.double())
        self.cells, self.side, self.loss = cells, side, loss
        self.image, self.groups = image.double(), groups.double()
        self.norms = cells.sums.square().sum((1, 2))
        self.begin = torch.arange(offered, len(cells.positions)).view(len(groups), -1)
        self.chosen = self.begin.clone()
        self.sums = cells.sums[self.begin].sum(1)
        self.masses = cells.masses[self.begin].sum(1)
        self.overlaps = torch.zeros(len(cells.positions), dtype=torch.int64)
        self.elsewhere = torch.arange(len(cells.positions)) >= offered  # what a tile begins with has one place
        for index in self.begin.flatten().tolist():
            self._count(index, 1)

    def improve(self, tile: int, storage: int) -> None:
        """Exchange one cell for the best there is, the first of equals; it may be the same."""
        current, own = int(self.chosen[tile, storage]), int(self.begin[tile, storage])
        self._swap(tile, current, -1)
        forbidden = self.elsewhere.clone()
        forbidden[own] = False
        forbidden |= self.overlaps > 0
        forbidden[current] = False  # of starts that overlap
        best = int(self._costs(tile).cpu().masked_fill(forbidden, torch.inf).argmin())
        self._swap(tile, best, 1)
        self.chosen[tile, storage] = best

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
        cost = self.masses.new_zeros(len(self.cells.masses))
        if self.loss.instance:
            everything = self._distances(self.sums.sum(0), self.masses.sum(), self.image)
            cost += self.loss.instance * everything
        if self.loss.group:
            own = self._distances(self.sums[tile], self.masses[tile], self.groups[tile])
            cost += self.loss.group / len(self.groups) * own
        return cost

    def _distances(self, sums: Tensor, mass: Tensor, target: Tensor) -> Tensor:
        """Discrepancy (n,) of a target and of what ``sums`` and ``mass`` are together with each cell.

        The squared one is |(S + a) / (M + w) - t|^2 = (|r|^2 + 2 r.(a - w t) + |a - w t|^2) / (M + w)^2 with
        r = S - M t: two products of a vector with all cells, a third of the time.
        """
        w = self.cells.masses
        if self.loss.discrepancy != "squared":
            together = (sums + self.cells.sums) / (mass + w)[:, None, None]
            return discrepancy(together, target, self.loss.discrepancy, self.loss.alpha, self.loss.beta)
        t = target.flatten()
        r = sums.flatten() - mass * t
        by_r, by_t = (self.cells.sums.flatten(1) @ torch.stack([r, t], 1)).T
        squares = r @ r + 2 * (by_r - w * (r @ t)) + self.norms - 2 * w * by_t + w.square() * (t @ t)
        return squares / (mass + w).square() / len(target)
