"""Number of tiles of each image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from idc_ray.condensation.seeding import uniform
from idc_ray.config import CondenseConfig
from idc_ray.errors import BadRequest
from idc_ray.images.tiles import grid_count

#: Images whose budgets are fixed together before the first one is condensed. Of more, a sample of this size gives the
#: mean difficulty, to about 0.7 %, and tiles are rounded image by image.
SURVEY_IMAGES = 10_000


@dataclass(frozen=True)
class Surveyed:
    """What an image's budget depends on.

    Attributes:
        image_id: the image's id.
        height: of the LR image, in pixels.
        width: the same.
        weight: share of the budget for a pixel, relative to other images: 1, or the image's mean difficulty.
        clip: name of the clip of which the image is a frame; empty: it is none.
        frame: name of the frame, by which those of a clip are in order.
    """

    image_id: str
    height: int
    width: int
    weight: float = 1.0
    clip: str = ""
    frame: str = ""


def allot(images: Iterable[Surveyed], ratio: float, tile: int, seed: int) -> dict[str, int]:
    """Tiles of each image of a run: in total ``ratio`` of the pixels, rounded to a whole number, at least one.

    Each image gets its expected number rounded up or down. Which ones are rounded up is drawn at random by systematic
    sampling: in an order that is random, but depends on seed and ids only, the sum of the first images is everywhere
    within one tile of its expectation. Frames of a clip follow each other, so that its sum is within one tile too, and
    its tiles are spread evenly. What images cannot hold goes to the others.

    Args:
        images: in any order; those that hold no whole tile, or whose weight is not finite, get none.
        ratio: stored pixels over pixels of all images, in (0, 1].
        tile: side of a tile in LR pixels.
        seed: the run's seed.
    """

    def place(each: Surveyed) -> tuple[float, str, str]:
        together = each.clip or each.image_id
        return uniform(seed, together, "budget"), together, each.frame

    order = sorted(images, key=place)
    capacity = np.array([grid_count(each.height, each.width, tile) for each in order], float)
    pixels = np.array([each.height * each.width for each in order], float)
    weights = pixels * [each.weight if math.isfinite(each.weight) else 0.0 for each in order] * (capacity > 0)
    total = min(capacity[weights > 0].sum(), max(1.0, ratio * pixels[capacity > 0].sum() / tile**2))
    expected = np.zeros(len(order))
    free = weights > 0
    while free.any():
        expected[free] = (total - capacity[(weights > 0) & ~free].sum()) * weights[free] / weights[free].sum()
        full = free & (expected > capacity)
        if not full.any():
            break
        expected[full] = capacity[full]
        free &= ~full
    ends = np.floor(np.cumsum(expected) + 0.5)
    tiles = np.minimum(np.diff(ends, prepend=0.0), capacity)
    return {each.image_id: int(count) for each, count in zip(order, tiles, strict=True)}


def expected_tiles(ratio: float, height: int, width: int, tile: int) -> float:
    """Tiles whose pixels are ``ratio`` of an image's.

    Args:
        ratio: stored pixels over pixels, in (0, 1].
        height: height of the LR image in pixels.
        width: width of the LR image in pixels.
        tile: side of a tile in pixels.
    """
    return ratio * height * width / tile**2


def tile_budget(expected: float, candidates: int, seed: int, image_id: str, least: int = 0) -> int:
    """The budget of an image of which others are not known: :func:`allot` is exact in total.

    floor(expected + u) with u uniform in [0, 1) from (seed, image id); at most as many tiles as the image holds. The
    expectation is kept, so that n images deviate by 0.4 √n tiles.

    Args:
        expected: see :func:`expected_tiles`; for ``allocation: difficulty`` times the image's difficulty over the run's
            mean difficulty. At least 0.
        candidates: how many whole tiles the image holds.
        seed: the run's seed.
        image_id: the image's id.
        least: fewest tiles.
    """
    if not (math.isfinite(expected) and expected >= 0):
        raise ValueError(f"expected tiles are {expected}; expected a finite number of at least 0")
    return min(candidates, max(least, math.floor(expected + uniform(seed, image_id, "budget"))))


def budgets_of(config: CondenseConfig, rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Budgets from rows of ``image_id``, ``height``, ``width``, and ``difficulty``, which may be None or not needed.

    Rows of frames also have ``clip`` and ``frame``, see `Surveyed`.
    """
    weighed = config.allocation == "difficulty"
    images = []
    for row in rows:
        weight = row["difficulty"] if weighed else 1.0
        if weight is not None:
            clip, frame = row.get("clip", ""), row.get("frame", "")
            images.append(Surveyed(row["image_id"], row["height"], row["width"], weight, clip, frame))
    return allot(images, config.ratio, config.tile_size, config.seed)


def mean_difficulty(measured: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Mean difficulty for ``allocation: difficulty``, weighted by pixels so that the budget is met.

    Args:
        measured: rows of ``image_id``, ``difficulty`` (None: could not be read), ``height``, ``width``, in any order.

    Returns:
        ``mean_difficulty``, and how many ``images`` it rests on.

    Raises:
        BadRequest: no image of the sample can be read, or the teacher adds nothing to any of them.
    """
    listed = list(measured)
    # NaN: the teacher failed on this image, which will be quarantined; it must not make the mean NaN.
    rows = [row for row in listed if row["difficulty"] is not None and math.isfinite(row["difficulty"])]
    rows.sort(key=lambda row: row["image_id"])  # sums of floats depend on their order
    pixels = sum(row["height"] * row["width"] for row in rows)
    mean = sum(row["difficulty"] * row["height"] * row["width"] for row in rows) / pixels if pixels else 0.0
    if mean <= 0:
        raise BadRequest(
            f"the difficulty of {len(listed)} sample images is 0 or cannot be measured; "
            "check the images, or use --allocation per_image"
        )
    return {"mean_difficulty": mean, "images": len(rows)}
