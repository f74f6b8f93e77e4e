"""Number of tiles of an image."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from idc_ray.condensation.seeding import uniform
from idc_ray.errors import BadRequest

__all__ = ["SURVEY_IMAGES", "expected_tiles", "mean_difficulty", "tile_budget"]

#: Images in the sample that a run's mean difficulty is measured on; it is then known to about a tenth.
SURVEY_IMAGES = 64


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
    """floor(expected + u) with u uniform in [0, 1) from (seed, image id); at most as many tiles as the image holds.

    Rounding at random keeps the expectation, so a run reaches the ratio asked for; rounding each image to the nearest
    missed it by a fifth with photographs of 481 x 321, as all of them have the same share.

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


def mean_difficulty(measured: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Mean difficulty for ``allocation: difficulty``, weighted by pixels so that the budget is met.

    Args:
        measured: rows of ``image_id``, ``difficulty`` (None: could not be read) and ``pixels``, in any order.

    Returns:
        ``mean_difficulty``, and how many ``images`` it rests on.

    Raises:
        BadRequest: no image of the sample can be read, or the teacher adds nothing to any of them.
    """
    listed = list(measured)
    # NaN: the teacher failed on this image, which will be quarantined; it must not make the mean NaN.
    rows = [row for row in listed if row["difficulty"] is not None and math.isfinite(row["difficulty"])]
    rows.sort(key=lambda row: row["image_id"])  # sums of floats depend on their order
    pixels = sum(row["pixels"] for row in rows)
    mean = sum(row["difficulty"] * row["pixels"] for row in rows) / pixels if pixels else 0.0
    if mean <= 0:
        raise BadRequest(
            f"the difficulty of {len(listed)} sample images is 0 or cannot be measured; "
            "check the images, or use --allocation per_image"
        )
    return {"mean_difficulty": mean, "images": len(rows)}
