from __future__ import annotations

import numpy as np

from idc_ray.condensation.cells import mosaic
from idc_ray.report.locate_tiles import Box, boxes_of_tile, find_patch
from tests.report.conftest import picture


def test_a_patch_is_found_where_it_is_and_nowhere_else() -> None:
    """Catches swapped axes, and probes that are mistaken for the whole comparison."""
    image = picture(0, 40, 60)
    assert find_patch(image, image[7:19, 31:40]) == (7, 31)
    assert find_patch(image, image[:40, :60]) == (0, 0)
    changed = image[7:19, 31:40].copy()
    changed[5, 1, 2] ^= 1  # at none of the probes
    assert find_patch(image, changed) is None
    assert find_patch(image, picture(1, 41, 5)) is None


def test_a_flat_patch_is_nowhere() -> None:
    """Catches a box in the wrong part of a sky."""
    assert find_patch(np.zeros((20, 20, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)) is None


def test_the_cells_of_a_mosaic_are_found_as_the_method_puts_them_together() -> None:
    """Catches a margin that includes blended pixels, so that no cell is ever found."""
    import torch

    image = picture(3, 60, 80)
    lr = torch.from_numpy(image).permute(2, 0, 1)
    places = [(4, 8), (20, 30), (36, 50), (10, 60)]
    tile = mosaic(lr[:, :24, :24], lr, torch.tensor(places), blend=4).permute(1, 2, 0).numpy()
    found = boxes_of_tile(image, tile, (0, 0), cells=2, blend=4)
    assert found == [Box(top, left, 12, 12, "cell") for top, left in places]


def test_a_crop_is_one_box_and_learned_pixels_show_their_start() -> None:
    image = picture(4, 60, 80)
    tile = image[5:29, 6:30]
    assert boxes_of_tile(image, tile, (5, 6), 2, 4) == [Box(5, 6, 24, 24, "crop")]
    learned = tile ^ 1
    assert boxes_of_tile(image, learned, (5, 6), 2, 4) == [Box(5, 6, 24, 24, "start")]
    assert boxes_of_tile(image, learned, None, 2, 4) == []
