from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from idc_ray.pipeline.gallery import BACKGROUND, GalleryEntry, gallery_png

SIDE = 48


def tile(side: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def entry(tiles: int = 2, scale: int = 2, source: str = "a/b.png", seed: int = 0) -> GalleryEntry:
    return GalleryEntry(
        source=source,
        real=[tile(SIDE, seed + i) for i in range(tiles)],
        lr=[tile(SIDE, seed + 100 + i) for i in range(tiles)],
        hr=[tile(SIDE * scale, seed + 200 + i) for i in range(tiles)],
        loss_start=0.4,
        loss_end=0.1,
    )


def places(page: Image.Image, shown: Image.Image, cell: int) -> list[tuple[int, int]]:
    """Where ``shown``, enlarged by repetition to ``cell``, is on the page, exactly."""
    picture, factor = np.asarray(page), cell // shown.width
    first = np.asarray(shown)[0, 0]
    enlarged = np.repeat(np.repeat(np.asarray(shown), factor, 0), factor, 1)
    candidates = np.argwhere((picture == first).all(-1))
    found = []
    for top, left in candidates.tolist():
        if np.array_equal(picture[top : top + cell, left : left + cell], enlarged):
            found.append((left, top))
    return found


@pytest.mark.parametrize(("scale", "cell"), [(2, 192), (3, 144), (4, 192)])
def test_every_tile_is_shown_pixel_for_pixel_and_all_in_one_size(scale: int, cell: int) -> None:
    """Catches smoothing that hides what is stored, and an enlargement by a broken factor."""
    one = entry(scale=scale)
    page = gallery_png([one])
    where = [[places(page, t, cell) for t in group] for group in (one.real, one.lr, one.hr)]
    assert all(len(found) == 1 for group in where for found in group)
    tops = {top for group in where for ((_, top),) in group}
    lefts = [left for group in where for ((left, _),) in group]
    assert len(tops) == 1
    assert lefts == sorted(lefts)


@pytest.mark.parametrize(("missing", "cell"), [("lr", 192), ("hr", 144)])
def test_what_is_not_stored_has_no_column(missing: str, cell: int) -> None:
    one = replace(entry(), **{missing: []})
    page = gallery_png([one])
    assert page.width < gallery_png([entry()]).width
    assert all(places(page, shown, cell) for shown in (*one.real, *one.lr, *one.hr))


def test_images_follow_each_other_in_order() -> None:
    entries = [entry(tiles=1, seed=1000 * i) for i in range(3)]
    page = gallery_png(entries)
    tops = [places(page, one.lr[0], 192)[0][1] for one in entries]
    assert tops == sorted(set(tops))


def test_no_more_tiles_than_asked_for_and_nothing_over_the_edge() -> None:
    """Catches an image of twenty tiles that runs into the next group, and a name wider than the page."""
    many = entry(tiles=7, source="very/" * 200 + "long.png")
    page = gallery_png([many], max_tiles=2)
    assert page.width == gallery_png([entry(tiles=2)], max_tiles=2).width
    assert places(page, many.lr[1], 192)
    assert not places(page, many.lr[2], 192)
    border = np.asarray(page)
    for edge in (border[0], border[-1], border[:, 0], border[:, -1]):
        assert (edge == BACKGROUND).all()


def test_the_caption_has_source_and_losses() -> None:
    """Catches a caption that is not drawn, or the same for all: equal tiles, other facts, other pixels."""
    one = entry()
    page = np.asarray(gallery_png([one]))
    for other in (replace(one, source="c.png"), replace(one, loss_end=0.3), replace(one, loss_start=None)):
        changed = np.asarray(gallery_png([other]))
        rows = np.flatnonzero((changed != page).any((1, 2)))
        assert 0 < len(rows) < 30  # one line of text


def test_images_without_tiles_are_left_out_and_none_at_all_is_an_error() -> None:
    empty = GalleryEntry("none.png", [tile(SIDE, 1)], [], [])
    assert gallery_png([empty, entry()]).size == gallery_png([entry()]).size
    with pytest.raises(ValueError, match="at least one image"):
        gallery_png([empty])
