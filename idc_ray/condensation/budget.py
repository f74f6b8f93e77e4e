"""Number of tiles of an image."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from idc_ray.condensation.seeding import uniform
from idc_ray.errors import BadRequest

__all__ = ["SURVEY_IMAGES", "difficulty_budget", "mean_difficulty", "per_image_budget"]

#: Images in the sample that a run's mean difficulty is measured on; it is then known to about a tenth.
SURVEY_IMAGES = 64


def per_image_budget(ratio: float, candidates: int) -> int:
    """max(1, round(ratio N)), the paper's budget: the same share of every image.

    Args:
        ratio: stored pixels over pixels, in (0, 1].
        candidates: N, how many whole tiles the image holds.
    """
    return max(1, round(ratio * candidates))


def difficulty_budget(ratio: float, candidates: int, weight: float, seed: int, image_id: str) -> int:
    """floor(ratio N w + u) with u uniform in [0, 1) from (seed, image id): more tiles for harder images.

    Rounding at random keeps the expectation, so ratios below one tile an image work; an image may get none.

    Args:
        ratio: stored pixels over pixels, in (0, 1].
        candidates: N, how many whole tiles the image holds; also the most it can get.
        weight: w, the image's difficulty over the run's mean difficulty, at least 0.
        seed: the run's seed.
        image_id: the image's id.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight is {weight}; expected a finite number of at least 0")
    return min(candidates, math.floor(ratio * candidates * weight + uniform(seed, image_id, "budget")))


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
