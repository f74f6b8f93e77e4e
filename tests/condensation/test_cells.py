from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idc_ray.condensation import cells as module
from idc_ray.condensation.cells import NOWHERE, CellGrid, Cells, cell_side, cell_windows, mosaic, tile_offsets
from idc_ray.condensation.crops import Crops, difficulty_map
from idc_ray.condensation.difficulty import TileWeights
from idc_ray.condensation.rlff import FrequencyBank, fourier_products
from idc_ray.condensation.targets import RealImage, measure_image, standardise
from idc_ray.condensation.teacher_features import FeatureReader
from tests.condensation.conftest import BATCHES, as_tensor, picture

SIDE = 8


def _measured(
    reader: FeatureReader, bank: FrequencyBank, hardness: Tensor, kind: TileWeights = "uniform", wanted: int = 4
) -> tuple[RealImage, Cells]:
    crops = Crops(reader, as_tensor(picture()), BATCHES)
    weighting = crops.weighting(hardness, 2.0, 0.01, 99)
    grid = CellGrid.of_image(crops, hardness, weighting, kind, SIDE, wanted)
    real, cells = measure_image(crops, bank, hardness, weighting, grid)
    assert cells is not None
    return real, cells


@pytest.fixture(scope="module")
def hardness(reader: FeatureReader) -> Tensor:
    return difficulty_map(reader, as_tensor(picture()), BATCHES)


def _literal(features: Tensor, weights: Tensor, bank: FrequencyBank, top: int, left: int) -> tuple[Tensor, float]:
    """Sum over a cell's local features of w (cos t.u, sin t.u), one by one, and of w."""
    frequencies = bank.sets[0].flatten(1).double()
    total, mass = torch.zeros(len(frequencies), 2, dtype=torch.float64), 0.0
    side = SIDE - 2  # local features of 3 x 3
    for y in range(top, top + side):
        for x in range(left, left + side):
            phase = frequencies @ features[:, y : y + 3, x : x + 3].flatten().double()
            weight = float(weights[y, x])
            total += weight * torch.stack([phase.cos(), phase.sin()], 1)
            mass += weight
    return total, mass


@pytest.mark.parametrize("kind", ["uniform", "difficulty"])
def test_the_features_of_an_image_are_those_of_its_crops_one_by_one(
    reader: FeatureReader, bank: FrequencyBank, hardness: Tensor, kind: TileWeights
) -> None:
    lr = as_tensor(picture())
    real, cells = _measured(reader, bank, hardness, kind)
    weighting = real.weighting.of_tiles(kind)
    assert len(cells.positions.unique(dim=0)) == len(cells.positions) == len(cells.feature_sums)
    assert cells.positions.min() == 0 and (cells.positions.max(0).values + SIDE).tolist() == [52, 70]
    for index in range(0, len(cells.positions), 37):
        place = cells.positions[index]
        inside = ((real.positions <= place) & (place + SIDE <= real.positions + 16)).all(1)
        crop = real.positions[int(inside.nonzero()[0])]  # the first that it lies in
        top, left = crop.tolist()
        tile = lr[None, :, top : top + 16, left : left + 16].float() / 255
        features = standardise(reader.features(tile), real.mean, real.std)[0]
        weights = weighting(reader.centres(hardness[top : top + 16, left : left + 16]))
        total, weight = _literal(features, weights, bank, *(place - crop).tolist())
        assert torch.allclose(cells.feature_sums[index].double(), total, atol=1e-5 * (SIDE - 2) ** 2)
        assert float(cells.weight_sums[index]) == pytest.approx(weight, rel=1e-5)


def test_windows_of_a_tile_are_its_cells(reader: FeatureReader, bank: FrequencyBank) -> None:
    features, weights = torch.randn(8, 16, 16), torch.rand(14, 14)
    offsets = tile_offsets(16, 2)
    assert offsets.tolist() == [[0, 0], [0, 8], [8, 0], [8, 8]]
    columns = cell_windows(offsets, SIDE, reader) * weights.flatten()
    sums = fourier_products(features[None], bank.directions[0], columns[None], bank.bandwidths)[0]
    for index, (top, left) in enumerate(offsets.tolist()):
        total, weight = _literal(features, weights, bank, top, left)
        assert torch.allclose(sums[index].double(), total, atol=1e-4)
        assert float(columns[index].sum()) == pytest.approx(weight, rel=1e-5)


def test_of_too_many_cells_the_heaviest_are_searched(
    reader: FeatureReader, bank: FrequencyBank, hardness: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of equal ones not those of one corner; the same ones each time."""

    def cells(map_of: Tensor, wanted: int) -> Cells:
        return _measured(reader, bank, map_of, wanted=wanted)[1]

    def mean_hardness(some: Cells) -> Tensor:
        return torch.stack([hardness[t : t + SIDE, x : x + SIDE].mean() for t, x in some.positions.tolist()])

    everything = cells(hardness, 1)
    monkeypatch.setattr(module, "MOST_CELLS", 30)
    some = cells(hardness, 1)
    assert len(some.positions) == 30
    assert mean_hardness(some).min() >= mean_hardness(everything).sort(descending=True).values[29] - 1e-6
    assert len(cells(hardness, 3).positions) == 48  # 16 for each that is wanted
    flat, again = (cells(torch.ones_like(hardness), 1) for _ in range(2))
    assert flat.positions[:, 0].max() > 30
    assert torch.equal(flat.positions, again.positions) and torch.equal(flat.feature_sums, again.feature_sums)


@pytest.mark.parametrize(("tile", "count"), [(16, 2), (17, 2), (50, 3), (48, 1), (19, 4)])
def test_a_mosaic_has_the_crops_in_their_places_and_nothing_else_changed(tile: int, count: int) -> None:
    lr = as_tensor(picture(90, 80))
    start = torch.full((3, tile, tile), 7, dtype=torch.uint8)
    side = cell_side(tile, count)
    random = torch.Generator().manual_seed(tile)
    positions = torch.randint(0, 80 - side, (count**2, 2), generator=random)
    positions[-1] = NOWHERE
    out = mosaic(start, lr, positions, 0)
    assert bool((start == 7).all())
    seen = torch.zeros(tile, tile, dtype=torch.int64)
    for index, (top, left) in enumerate(positions.tolist()):
        y, x = (index // count) * tile // count, (index % count) * tile // count
        bottom, right = (index // count + 1) * tile // count, (index % count + 1) * tile // count
        seen[y:bottom, x:right] += 1
        part = out[:, y:bottom, x:right]
        assert max(part.shape[1:]) <= side
        kept = top == NOWHERE
        assert torch.equal(
            part, start[:, y:bottom, x:right] if kept else lr[:, top:, left:][:, : bottom - y, : right - x]
        )
    assert bool((seen == 1).all())


@pytest.mark.parametrize("blend", [0, 1, 4, 5, 16, 40])
@pytest.mark.parametrize(("tile", "count"), [(16, 2), (17, 2), (50, 3), (48, 1), (19, 4)])
def test_a_crop_in_cells_is_the_crop(tile: int, count: int, blend: int) -> None:
    """Catches a blend that is darker than its parts, or shifts them: cells that were neighbours leave no seam."""
    lr = as_tensor(picture(90, 80))
    edges = torch.tensor([index * tile // count for index in range(count)])
    for corner in ([0, 0], [90 - tile, 80 - tile]):  # at the image's borders there is nothing to go on with
        positions = torch.cartesian_prod(edges, edges).view(-1, 2) + torch.tensor(corner)
        crop = lr[:, corner[0] : corner[0] + tile, corner[1] : corner[1] + tile]
        assert torch.equal(mosaic(torch.zeros_like(crop), lr, positions, blend), crop)
        positions[::2] = NOWHERE
        assert torch.equal(mosaic(crop, lr, positions, blend), crop)


def test_cells_go_over_into_each_other_in_even_steps() -> None:
    """Catches an edge between two cells, and a blend that reaches further than it says."""
    lr = torch.zeros(3, 40, 90, dtype=torch.uint8)
    lr[:, :, 45:] = 240
    dark, light = [4, 20], [4, 60]
    out = mosaic(torch.zeros(3, 16, 16, dtype=torch.uint8), lr, torch.tensor([dark, light, dark, light]), 4)
    assert out[0, 5].tolist() == [0] * 6 + [30, 90, 150, 210] + [240] * 6
    assert bool((out == out[:1, :1]).all())
    across = mosaic(torch.zeros(3, 16, 16, dtype=torch.uint8), lr, torch.tensor([dark, dark, light, light]), 4)
    assert torch.equal(across, out.transpose(1, 2))
