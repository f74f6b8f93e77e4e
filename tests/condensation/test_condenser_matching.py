"""What of the condenser decides how tiles are matched: cells, pixels, both, or nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from idc_ray.models import bundled_teacher_bytes, load_teacher
from idc_ray.models.teacher import Teacher
from tests.condensation.test_condenser import INITS, _assert_same, _condenser, _one, _task


def _places(cell: np.ndarray, lr: np.ndarray) -> list[tuple[int, int]]:
    """Where in an image (H, W, 3) a crop is from."""
    windows = np.lib.stride_tricks.sliding_window_view(lr, cell.shape[:2], (0, 1)).transpose(0, 1, 3, 4, 2)
    return [(int(top), int(left)) for top, left in np.argwhere((windows == cell).all((2, 3, 4)))]


@pytest.mark.parametrize("init", INITS)
def test_exchanged_cells_are_crops_of_the_image_that_do_not_overlap_and_match_better(init: str) -> None:
    """Nothing is drawn where no pixel is learned. And nothing is exchanged where nothing is to be matched.

    The image is one that exchanging helps from every start: of pictures this small it does not always from the hardest.
    """
    teacher = load_teacher(bundled_teacher_bytes(2), scale=2)
    settings: dict[str, object] = {"init": init, "ratio": 0.1407, "loss__hardness": "both", "rlff__num_held_out": 256}
    task = _task(2)
    start = _one(_condenser(teacher, iterations=0, exchange__blend=0, **settings), task)
    result = _one(_condenser(teacher, matching="cells", exchange__blend=0, **settings), task)
    assert result.loss_start == start.loss_start
    assert result.loss_start is not None and result.loss_end is not None
    assert result.loss_end < result.loss_start
    taken = []
    for tile, begun in zip(result.lr_tiles, start.lr_tiles, strict=True):
        for y, x in ((0, 0), (0, 8), (8, 0), (8, 8)):
            cell = tile[y : y + 8, x : x + 8]
            if not np.array_equal(cell, begun[y : y + 8, x : x + 8]):
                (place,) = _places(cell, task.lr)
                assert all(max(abs(place[0] - a), abs(place[1] - b)) >= 8 for a, b in taken)
                taken.append(place)
    assert len(taken) >= 4


def test_blending_changes_pixels_near_the_seams_only() -> None:
    """Catches a setting that is ignored, and cells that it changes.

    The image is one that keeps its start with neither: noise is no longer itself when it is blended.
    """
    teacher = load_teacher(bundled_teacher_bytes(2), scale=2)
    hard, soft = (
        _one(
            _condenser(teacher, matching="cells", ratio=0.1407, exchange__blend=blend, rlff__num_held_out=256), _task(2)
        ).lr_tiles
        for blend in (0, 4)
    )
    changed = np.abs(hard.astype(int) - soft).max((0, 3)) > 0
    near = np.zeros((16, 16), bool)
    near[6:10], near[:, 6:10] = True, True
    assert changed.any() and not changed[~near].any()


@pytest.mark.parametrize("cells", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(17, 17), (40, 33)])
def test_any_number_of_cells_and_the_smallest_image_will_do(
    teacher: Teacher, cells: int, height: int, width: int
) -> None:
    condenser = _condenser(teacher, tile_size=17, ratio=1, exchange__cells=cells, matching="cells")
    result = _one(condenser, _task(height=height, width=width))
    assert result.lr_tiles.shape == (result.candidates, 17, 17, 3)
    assert result.loss_end is not None and math.isfinite(result.loss_end)


@pytest.mark.parametrize("settings", [{"matching": "cells"}, {"iterations": 0}, {"iterations": 0, "init": "medoid"}])
def test_sets_of_frequencies_that_no_step_uses_are_left_out(teacher: Teacher, settings: dict[str, object]) -> None:
    """The same result as with all of them, and the image is measured in the first alone."""
    one, all_sets = _condenser(teacher, **settings), _condenser(teacher, matching="pixels")
    assert len(one.bank.directions) == 1 and len(all_sets.bank.directions) == 2
    slow = _condenser(teacher, **settings)
    slow.bank = slow.matcher.bank = all_sets.bank
    _assert_same(_one(one, _task()), _one(slow, _task()))


@pytest.mark.parametrize("kind", ["difficulty", "gradient", "both"])
def test_without_iterations_the_tiles_are_the_hardest_crops(teacher: Teacher, kind: str) -> None:
    """What idc begins with is a baseline, whatever the position weights: the results of one are those of the other."""
    settings: tuple[dict[str, object], ...] = ({"iterations": 0, "loss__hardness": kind}, {"method": "hardest"})
    start, hardest = (_one(_condenser(teacher, **one), _task()) for one in settings)
    assert np.array_equal(start.lr_tiles, hardest.lr_tiles) and np.array_equal(start.hr_tiles, hardest.hr_tiles)


def test_pixels_are_learned_from_what_was_exchanged_or_from_the_start(teacher: Teacher) -> None:
    """Catches an exchange whose result is thrown away, and pixels that are learned where they are not to be."""
    tiny = {"optimizer__learning_rate": 1e-9}  # steps that round to nothing

    def tiles(**settings: object) -> np.ndarray:
        return _one(_condenser(teacher, init="random", **settings), _task()).lr_tiles

    start, exchanged = tiles(iterations=0), tiles(matching="cells")
    assert not np.array_equal(start, exchanged)
    assert np.array_equal(tiles(matching="both", **tiny), exchanged)
    assert np.array_equal(tiles(matching="pixels", **tiny), start)
    assert not np.array_equal(tiles(matching="both"), exchanged)
