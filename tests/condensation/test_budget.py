from __future__ import annotations

import math

import numpy as np
import pytest

from idc_ray.condensation.budget import Surveyed, allot, expected_tiles, tile_budget
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


def test_a_clip_has_its_share_to_one_tile_and_tiles_at_even_distances() -> None:
    """Catches clips that get many or few tiles by chance, and neighbouring frames that both get one."""
    frames = [Surveyed(f"{n:016x}", 160, 240, 1.0, f"clip {n % 20}", f"{n // 20:05d}") for n in range(20 * 60)]
    tiles = allot(frames, 0.01, 48, 0)
    for clip in range(20):
        chosen = [place for place, each in enumerate(frames[clip::20]) if tiles[each.image_id]]
        assert len(chosen) in (10, 11)  # 0.01 * 60 frames are 10 tiles
        assert set(np.diff(chosen)) <= {5, 6, 7}
    apart = allot([Surveyed(each.image_id, 160, 240) for each in frames], 0.01, 48, 0)
    assert len({sum(apart[each.image_id] for each in frames[clip::20]) for clip in range(20)}) > 3


def folder(kind: str) -> list[Surveyed]:
    """Images of folders as users have them, LR sizes; difficulties are as widely spread as those of photographs."""
    random = np.random.default_rng(0)
    sizes = {
        "equal": [(160, 240)] * 200,
        "mixed": [(int(h), int(w)) for h, w in random.integers(60, 900, (60, 2))],
        "tiny": [(int(h), int(w)) for h, w in random.integers(48, 70, (300, 2))],
        "one": [(512, 512)],
        "thousand crops": [(64, 64)] * 1000,
        "panoramas": [(300, 2400)] * 12,
        "x4": [(80, 120)] * 200,
        "with images that are too small": [(40, 40)] * 50 + [(160, 240)] * 100,
    }[kind]
    weights = random.gamma(2.4, size=len(sizes))
    return [Surveyed(f"{i:016x}", *size, weight) for i, (size, weight) in enumerate(zip(sizes, weights, strict=True))]


KINDS = ["equal", "mixed", "tiny", "one", "thousand crops", "panoramas", "x4", "with images that are too small"]


@pytest.mark.parametrize("ratio", [0.1, 0.02, 0.005])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_reaches_its_ratio_to_half_a_tile(kind: str, weighed: bool, ratio: float) -> None:
    """Catches rounding errors of images that add up, and shares that hard images cannot hold and that are lost."""
    images = [each if weighed else Surveyed(each.image_id, each.height, each.width) for each in folder(kind)]
    usable = [each for each in images if grid_count(each.height, each.width, 48)]
    wanted = max(1.0, ratio * sum(each.height * each.width for each in usable) / 48**2)
    tiles = allot(images, ratio, 48, 0)
    assert abs(sum(tiles.values()) - wanted) <= 0.5 + 1e-9
    assert all(tiles[each.image_id] <= grid_count(each.height, each.width, 48) for each in images)


def test_an_image_gets_its_share_rounded_up_or_down() -> None:
    """Catches a total that is right because a few images got all."""
    images = folder("panoramas")
    tiles = allot(images, 0.02, 48, 0)
    pixels = sum(each.height * each.width * each.weight for each in images)
    for each in images:
        share = 0.02 * 12 * 300 * 2400 / 48**2 * each.height * each.width * each.weight / pixels
        assert math.floor(share) <= tiles[each.image_id] <= math.ceil(share)


def test_what_hard_images_cannot_hold_goes_to_the_others() -> None:
    images = [Surveyed("a", 96, 96, 100.0), Surveyed("b", 96, 96, 1.0), Surveyed("c", 96, 96, 1.0)]
    assert allot(images, 0.5, 48, 0) == {"a": 4, "b": 1, "c": 1}
    assert sum(allot(images, 1.0, 48, 0).values()) == 12


def test_which_images_are_rounded_up_depends_on_seed_and_ids_only() -> None:
    images = folder("equal")
    assert allot(images, 0.02, 48, 3) == allot(images[::-1], 0.02, 48, 3)
    assert allot(images, 0.02, 48, 3) != allot(images, 0.02, 48, 4)


def test_a_run_has_at_least_one_tile_if_any_image_holds_one() -> None:
    assert allot([Surveyed("a", 48, 48)], 0.01, 48, 0) == {"a": 1}
    assert allot([Surveyed("a", 40, 48), Surveyed("b", 48, 48, math.nan)], 0.5, 48, 0) == {"a": 0, "b": 0}
    assert allot([], 0.5, 48, 0) == {}
