from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from idc_ray.condensation import exchange as module
from idc_ray.condensation.cells import NOWHERE, Cells
from idc_ray.condensation.characteristic import discrepancy
from idc_ray.condensation.exchange import exchange
from idc_ray.config import Loss

SIDE, TILES, PER_TILE = 4, 2, 3


def _random(count: int, seed: int, far: bool = True) -> Cells:
    """Cells with any features; far from each other, or on a line with overlaps."""
    random = torch.Generator().manual_seed(seed)
    step = SIDE if far else 1
    positions = torch.stack([step * torch.arange(count), torch.zeros(count, dtype=torch.int64)], 1)
    weights = torch.rand(count, generator=random) + 0.5
    return Cells(positions, torch.randn(count, 8, 2, generator=random) * weights[:, None, None] / 2, weights)


def _begin(count: int = TILES * PER_TILE, seed: int = 99) -> Cells:
    cells = _random(count, seed)
    return Cells(torch.full_like(cells.positions, NOWHERE), cells.feature_sums, cells.weight_sums)


def _goals(seed: int = 5) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    groups = torch.randn(TILES, 8, 2, generator=random) / 3
    return groups.mean(0), groups


def _loss(tiles: list[list[tuple[Tensor, Tensor]]], image: Tensor, groups: Tensor, loss: Loss) -> float:
    """As the pixels' loss is written: levels of characteristic functions of (feature sums, weight sums)."""

    def function(cells: list[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack([s for s, _ in cells]).sum(0) / torch.stack([m for _, m in cells]).sum()

    kind = (loss.discrepancy, loss.alpha, loss.beta)
    instance = discrepancy(function([cell for tile in tiles for cell in tile]), image, *kind)
    group = torch.stack([discrepancy(function(t), g, *kind) for t, g in zip(tiles, groups, strict=True)]).mean()
    return float(loss.instance * instance + loss.group * group)


def _tiles(result: Tensor, offered: Cells, begin: Cells) -> list[list[tuple[Tensor, Tensor]]]:
    where = {tuple(place): index for index, place in enumerate(offered.positions.tolist())}
    out = []
    for tile, places in enumerate(result.tolist()):
        row = []
        for place, position in enumerate(places):
            source, index = (
                (begin, tile * PER_TILE + place) if position[0] == NOWHERE else (offered, where[tuple(position)])
            )
            row.append((source.feature_sums[index], source.weight_sums[index]))
        out.append(row)
    return out


LOSSES = [
    Loss(), Loss(instance=0), Loss(group=0), Loss(instance=2, group=0.3),
    Loss(discrepancy="amplitude_phase", alpha=0.5, beta=2),
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_one_sweep_takes_the_best_in_every_place_by_brute_force(loss: Loss) -> None:
    """The whole loss computed again for every cell in every place."""
    offered, begin, goals = _random(20, 1), _begin(), _goals()
    cells = [(offered.feature_sums[i], offered.weight_sums[i]) for i in range(20)]
    tiles = [
        [(begin.feature_sums[t * PER_TILE + p], begin.weight_sums[t * PER_TILE + p]) for p in range(PER_TILE)]
        for t in range(TILES)
    ]
    used: dict[tuple[int, int], int] = {}
    for place, tile in itertools.product(range(PER_TILE), range(TILES)):
        best, own = _loss(tiles, *goals, loss), tiles[tile][place]
        choice = None
        for index in set(range(20)) - set(used.values()):
            tiles[tile][place] = cells[index]
            value = _loss(tiles, *goals, loss)
            if value < best:
                best, choice = value, index
        tiles[tile][place] = own if choice is None else cells[choice]
        if choice is not None:
            used[tile, place] = choice
    result = exchange(offered, begin, SIDE, *goals, loss, sweeps=1)
    expected = [
        [offered.positions[used[t, p]].tolist() if (t, p) in used else [NOWHERE, NOWHERE] for p in range(PER_TILE)]
        for t in range(TILES)
    ]
    assert result.tolist() == expected
    assert used


@pytest.mark.parametrize("loss", LOSSES)
def test_products_that_are_not_kept_change_nothing(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very large images; products of a cell that is no longer in use must not be mistaken for those of another."""
    arguments = (_random(60, 2), _begin(), SIDE, *_goals(), loss, 3)
    expected = exchange(*arguments)
    monkeypatch.setattr(module, "KEPT_PRODUCTS", 2 * 66 * 8)
    assert torch.equal(exchange(*arguments), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_more_sweeps_never_leave_a_larger_loss(loss: Loss) -> None:
    offered, begin, goals = _random(60, 2), _begin(), _goals()
    losses = [
        _loss(_tiles(exchange(offered, begin, SIDE, *goals, loss, sweeps), offered, begin), *goals, loss)
        for sweeps in range(5)
    ]
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(losses))
    assert losses[4] < 0.8 * losses[0]


def test_the_image_that_is_made_of_some_cells_is_found() -> None:
    """Groups that one offered cell each matches alone, among many that do not."""
    offered, begin = _random(50, 3), _begin(TILES)
    groups = offered.feature_sums[[7, 31]] / offered.weight_sums[[7, 31], None, None]
    image = offered.feature_sums[[7, 31]].sum(0) / offered.weight_sums[[7, 31]].sum()
    result = exchange(offered, begin, SIDE, image, groups, Loss(), sweeps=3)
    assert result[:, 0].tolist() == offered.positions[[7, 31]].tolist()


def test_what_is_best_already_stays() -> None:
    offered, begin = _random(10, 4), _begin(TILES)
    groups = begin.feature_sums / begin.weight_sums[:, None, None]
    image = begin.feature_sums.sum(0) / begin.weight_sums.sum()
    result = exchange(offered, begin, SIDE, image, groups, Loss(), sweeps=3)
    assert bool((result == NOWHERE).all())


@pytest.mark.parametrize("count", [40, 9])
def test_no_cell_is_taken_that_overlaps_another(count: int) -> None:
    """Places on a line; nine of them hold two or three cells of four, so most of those at the beginning stay."""
    offered, goals = _random(count, 6, far=False), _goals()
    far_off = Cells(_begin().positions, 100 * _begin().feature_sums, _begin().weight_sums)  # the worst there are
    result = exchange(offered, far_off, SIDE, *goals, Loss(), sweeps=4)
    taken = sorted(top for top in result.flatten(0, 1)[:, 0].tolist() if top != NOWHERE)
    assert all(b - a >= SIDE for a, b in itertools.pairwise(taken))
    assert len(taken) == TILES * PER_TILE if count == 40 else len(taken) in (2, 3)


def test_a_cell_of_a_crop_keeps_its_place_free_of_others_until_it_is_exchanged() -> None:
    offered, goals = _random(12, 7, far=False), _goals()
    begin = _begin(TILES)
    placed = Cells(torch.tensor([[2, 0], [6, 0]]), begin.feature_sums, begin.weight_sums)
    result = exchange(offered, placed, SIDE, *goals, Loss(), sweeps=1)
    first, second = (tile[0][0] for tile in result.tolist())
    assert first == NOWHERE or abs(first - 6) >= SIDE
    assert second == NOWHERE or abs(second - (2 if first == NOWHERE else first)) >= SIDE
