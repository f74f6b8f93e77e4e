"""Matching by greedy exchange of cells for real ones, until the mosaic has the image's distribution.

Learned pixels come near the distribution of an image's hard places by drawing strokes into flat ones. Real cells
come there as they were photographed, but for the pixels at their seams, which are blended. The loss is the one that
pixels are learned by; what is sought is its minimum over a finite set.

The search is the exchange algorithm of optimal experimental design (Fedorov, Theory of Optimal Experiments, 1972), one
coordinate at a time (Meyer and Nachtsheim, The coordinate-exchange algorithm, Technometrics 37, 1995): the cells of the
tiles are the coordinates, the crops of the image their candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from idc_ray.condensation.cells import NOWHERE, Cells
from idc_ray.condensation.characteristic import discrepancy
from idc_ray.config import Loss

__all__ = ["exchange"]

#: Maximum size in bytes of the stored products of cells; further products are computed again.
KEPT_PRODUCTS = 256 * 2**20


@torch.no_grad()
def exchange(offered: Cells, begin: Cells, side: int, image: Tensor, groups: Tensor, loss: Loss, sweeps: int) -> Tensor:
    """Exchange each cell in turn for the one with the smallest loss, until a sweep changes nothing.

    A cell is exchanged only for one that overlaps no other used cell. An initial cell is a candidate in its place only.

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
    """The cells in use (``chosen``), and what follows from them.

    Of the squared discrepancy |(S + a) / (M + w) - t|^2, with S and M the sums of the other cells, a and w those of a
    candidate and t a target, only products of a with the cells in use, with targets and with itself depend on the
    candidate. They are kept, and updated where a cell is exchanged.
    """

    def __init__(self, cells: Cells, offered: int, side: int, image: Tensor, groups: Tensor, loss: Loss) -> None:
        self.cells, self.side, self.loss = cells, side, loss
        # Double precision: the squares of near matches are small differences of large numbers.
        self.features, self.weights = cells.feature_sums.flatten(1).double(), cells.weight_sums.double()
        self.targets = torch.cat([image[None], groups]).flatten(1).double()  # the image's, then each group's
        self.norms = self.features.square().sum(1)
        self.by_target = (self.features @ self.targets.T).T.contiguous()
        self.begin = torch.arange(offered, len(cells.positions)).view(len(groups), -1)
        self.chosen = self.begin.clone()
        self.kept = max(1, KEPT_PRODUCTS // self.norms.nbytes)
        first = self.begin.flatten()[: self.kept]
        products = self.features[first] @ self.features.T
        # Copies: a view of a row would keep them all.
        self.products = {index: row.clone() for index, row in zip(first.tolist(), products, strict=True)}
        self.by_all = self.features @ self.features[self.begin.flatten()].sum(0)
        self.overlaps = torch.zeros(len(cells.positions), dtype=torch.int64)
        self.elsewhere = torch.arange(len(cells.positions)) >= offered  # what a tile begins with has one place
        for index in self.begin.flatten().tolist():
            self._count(index, 1)

    def improve(self, tile: int, place: int) -> None:
        """Exchange one cell for the best candidate, the first among equals; it may be the same."""
        current, own = int(self.chosen[tile, place]), int(self.begin[tile, place])
        self._count(current, -1)
        forbidden = self.elsewhere.clone()
        forbidden[own] = False
        forbidden |= self.overlaps > 0
        forbidden[current] = False  # of starts that overlap
        best = int(self._costs(tile, place).cpu().masked_fill(forbidden, torch.inf).argmin())
        self._count(best, 1)
        if best != current:
            self.by_all += self._by_cell(best) - self._by_cell(current)
            self.products.pop(current, None)
            self.chosen[tile, place] = best

    def _by_cell(self, index: int) -> Tensor:
        """Products (n,) of all cells with one in use."""
        if index in self.products:
            return self.products[index]
        products = self.features @ self.features[index]
        if len(self.products) < self.kept:
            self.products[index] = products
        return products

    def _count(self, index: int, sign: int) -> None:
        position = self.cells.positions[index]
        if int(position[0]) != NOWHERE:
            near = (self.cells.positions - position).abs() < self.side
            self.overlaps[near.all(1)] += sign

    def _costs(self, tile: int, place: int) -> Tensor:
        """Loss (n,) that each cell would leave at a place of a tile, but for what is the same for all of them."""
        current = self.chosen[tile, place]
        cost = torch.zeros_like(self.norms)
        if self.loss.instance:
            others = self.chosen[self.chosen != current]
            cost += self.loss.instance * self._distances(others, self.by_all - self._by_cell(int(current)), 0)
        if self.loss.group:
            others = self.chosen[tile][self.chosen[tile] != current]
            by_others = torch.zeros_like(self.norms)
            for index in others.tolist():
                by_others += self._by_cell(index)
            cost += self.loss.group / len(self.chosen) * self._distances(others, by_others, 1 + tile)
        return cost

    def _distances(self, others: Tensor, by_others: Tensor, target: int) -> Tensor:
        """Discrepancy (n,) of a target and of what some cells are together with each cell.

        Args:
            others: indices of those cells.
            by_others: (n,) products of their summed features with all cells.
            target: index of the target.
        """
        t, weights = self.targets[target], self.weights + self.weights[others].sum()
        if self.loss.discrepancy != "squared":
            together = (self.features + self.features[others].sum(0)) / weights[:, None]
            a, b = (each.unflatten(-1, (-1, 2)) for each in (together, t))
            return discrepancy(a, b, self.loss.discrepancy, self.loss.alpha, self.loss.beta)
        squares = by_others[others].sum() + 2 * by_others + self.norms
        by_target = self.by_target[target] + self.by_target[target, others].sum()
        return ((squares / weights - 2 * by_target) / weights + t @ t) / (len(t) // 2)
