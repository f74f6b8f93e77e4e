"""Matching by greedy exchange of cells for real ones, until the mosaic has the image's distribution.

Learned pixels come near the distribution of an image's hard places by drawing strokes into flat ones. Real cells
come there as they were photographed, but for the pixels at their seams, which are blended. The loss is the one that
pixels are learned by; what is sought is its minimum over a finite set.

The search is the exchange algorithm of optimal experimental design (Fedorov, Theory of Optimal Experiments, 1972), one
coordinate at a time (Meyer and Nachtsheim, The coordinate-exchange algorithm, Technometrics 37, 1995): the cells of the
tiles are the coordinates, the crops of the image their candidates.

No step depends on a value that the host has to read, so a GPU is given all steps at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from idc_ray.condensation.cells import NOWHERE, Cells
from idc_ray.condensation.characteristic import discrepancy
from idc_ray.config import Loss

#: Maximum size in bytes of the stored products of cells; further products are computed again.
KEPT_PRODUCTS = 256 * 2**20

#: Pairs of cells that are compared at once when overlaps are first counted.
OVERLAPS_AT_ONCE = 2**22


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
    cells = Cells.join([offered, begin])
    search = _Search(cells, len(offered.positions), side, image, groups, loss)
    for _ in range(sweeps):
        before = search.chosen.clone()
        for place in range(search.per_tile):
            for tile in range(len(groups)):
                search.improve(tile, place)
        if search.on_host and torch.equal(before, search.chosen):
            break
    stayed = (search.chosen == search.begin).unsqueeze(1)
    return cells.positions.index_select(0, search.chosen).masked_fill(stayed, NOWHERE).unflatten(0, (len(groups), -1))


class _Search:
    """The cells in use (``chosen``, tile by tile), and what follows from them.

    Of the squared discrepancy |(S + a) / (M + w) - t|^2, with S and M the sums of the other cells, a and w those of a
    candidate and t a target, only products of a with the cells in use, with targets and with itself depend on the
    candidate. They are kept, and updated where a cell is exchanged.
    """

    def __init__(self, cells: Cells, offered: int, side: int, image: Tensor, groups: Tensor, loss: Loss) -> None:
        self.side, self.loss, self.tiles = side, loss, len(groups)
        # Double precision: the squares of near matches are small differences of large numbers.
        self.features, self.weights = cells.feature_sums.flatten(1).double(), cells.weight_sums.double()
        self.targets = torch.cat([image[None], groups]).flatten(1).double()  # the image's, then each group's
        self.norms = self.features.square().sum(1)
        self.target_norms = [t @ t for t in self.targets]
        self.by_target = (self.features @ self.targets.T).T.contiguous()
        self.on_host = self.norms.device.type == "cpu"
        self.offered, self.per_tile = offered, (len(self.norms) - offered) // self.tiles
        self.index = torch.arange(len(self.norms), device=self.norms.device)
        self.begin = self.index[offered:]
        self.chosen = self.begin.clone()
        begun = self.features[offered:]
        #: Products of the cell in use at each of the first places with all cells.
        self.products = begun[: max(1, KEPT_PRODUCTS // self.norms.nbytes)] @ self.features.T
        self.by_all = self.features @ begun.sum(0)
        # Cells from nowhere are put at places of their own, which overlap nothing.
        nowhere = cells.positions == NOWHERE
        self.positions = torch.where(nowhere, NOWHERE - side * self.index[:, None], cells.positions).double()
        self.uses = torch.zeros_like(self.index)  # of the cells in use, those that a cell overlaps
        self.uses[offered:] += 1  # what a tile begins with has one place
        for some in self.begin.split(max(1, OVERLAPS_AT_ONCE // len(self.norms))):
            self._count(some, 1)

    def improve(self, tile: int, place: int) -> None:
        """Exchange one cell for the best candidate, the first among equals; it may be the same."""
        here = tile * self.per_tile + place
        current = self.chosen[here : here + 1].clone()
        own = self.uses[self.offered + here : self.offered + here + 1]
        self._count(current, -1)
        own -= 1
        forbidden = (self.uses > 0) & (self.index != current)  # the current one may overlap others: starts do
        best = self._costs(tile, here).masked_fill_(forbidden, torch.inf).argmin(0, keepdim=True)
        own += 1
        self._count(best, 1)
        if self.on_host and torch.equal(best, current):
            return  # spares the product, which changes nothing then
        known = self._by_cell(here)
        products = torch.where(best == current, known, self._product(best))
        self.by_all += products - known
        self.products[here : here + 1] = products  # of places that are not kept: of none
        self.chosen[here : here + 1] = best

    def _by_cell(self, here: int) -> Tensor:
        """Products (n,) of all cells with the one in use at a place."""
        return self.products[here] if here < len(self.products) else self._product(self.chosen[here : here + 1])

    def _product(self, cell: Tensor) -> Tensor:
        return self.features @ self.features.index_select(0, cell).squeeze(0)

    def _count(self, cells: Tensor, sign: int) -> None:
        """Add ``sign`` to the uses of all cells that overlap some (k,)."""
        distance = torch.cdist(self.positions.index_select(0, cells), self.positions, p=torch.inf)
        self.uses.add_((distance < self.side).sum(0), alpha=sign)

    def _costs(self, tile: int, here: int) -> Tensor:
        """Loss (n,) that each cell would leave at a place of a tile, but for what is the same for all of them."""
        costs = []
        if self.loss.instance:
            others = self._others(0, len(self.chosen), here)
            costs.append(self.loss.instance * self._distances(others, self.by_all - self._by_cell(here), 0))
        if self.loss.group:
            first, end = tile * self.per_tile, (tile + 1) * self.per_tile
            products = [self._by_cell(other) for other in range(first, end) if other != here]
            by_others = sum(products[1:], products[0]) if products else torch.zeros_like(self.norms)
            others = self._others(first, end, here)
            costs.append(self.loss.group / self.tiles * self._distances(others, by_others, 1 + tile))
        return sum(costs[1:], costs[0])

    def _others(self, first: int, end: int, here: int) -> Tensor:
        """The cells in use at the places from ``first`` to ``end``, but for one of them."""
        return torch.cat([self.chosen[first:here], self.chosen[here + 1 : end]])

    def _distances(self, others: Tensor, by_others: Tensor, target: int) -> Tensor:
        """Discrepancy (n,) of a target and of what some cells are together with each cell.

        Args:
            others: indices of those cells.
            by_others: (n,) products of their summed features with all cells.
            target: index of the target.
        """

        def total(values: Tensor) -> Tensor:
            return values.index_select(0, others).sum(0)

        t, weights = self.targets[target], self.weights + total(self.weights)
        if self.loss.discrepancy != "squared":
            together = (self.features + total(self.features)) / weights[:, None]
            a, b = (each.unflatten(-1, (-1, 2)) for each in (together, t))
            return discrepancy(a, b, self.loss.discrepancy, self.loss.alpha, self.loss.beta)
        squares = total(by_others).add(by_others, alpha=2) + self.norms
        by_target = self.by_target[target] + total(self.by_target[target])
        return ((squares / weights).sub_(by_target, alpha=2) / weights + self.target_norms[target]) / (len(t) // 2)
