from __future__ import annotations

import pytest

from idc_ray.condensation.budget import expected_tiles, tile_budget
from idc_ray.images.tiles import grid_count


@pytest.mark.parametrize("ratio", [0.1, 0.02, 0.005])
@pytest.mark.parametrize(("height", "width"), [(160, 240), (80, 120), (678, 1020), (49, 95)])
def test_the_ratio_of_a_run_is_the_one_asked_for(ratio: float, height: int, width: int) -> None:
    """Catches budgets that count whole tiles only, or are rounded to the nearest: 0.06 or 0.12 instead of 0.1."""
    images = 1000
    expected = expected_tiles(ratio, height, width, 48)
    tiles = sum(tile_budget(expected, grid_count(height, width, 48), 0, f"{i:016x}") for i in range(images))
    assert tiles == pytest.approx(
        images * ratio * height * width / 48**2, abs=1.5 * images**0.5
    )  # 3 standard deviations


def test_a_budget_never_exceeds_the_image() -> None:
    assert tile_budget(expected_tiles(1.0, 95, 95, 48), 1, 0, "0" * 16) == 1
    assert tile_budget(1500.0, 15, 0, "0" * 16) == 15


def test_a_budget_depends_on_seed_and_image_only() -> None:
    budgets = [[tile_budget(1.5, 15, seed, f"{i:016x}") for i in range(50)] for seed in (0, 0, 1)]
    assert budgets[0] == budgets[1]
    assert budgets[0] != budgets[2]


def test_each_image_may_be_given_a_tile() -> None:
    assert {tile_budget(0.01, 15, 0, f"{i:016x}", least=1) for i in range(20)} == {1}
    assert tile_budget(0.01, 0, 0, "0" * 16, least=1) == 0  # it holds none


@pytest.mark.parametrize("expected", [float("nan"), -1.0, float("inf")])
def test_numbers_that_are_no_budget_are_refused(expected: float) -> None:
    with pytest.raises(ValueError, match="expected tiles"):
        tile_budget(expected, 15, 0, "0" * 16)
