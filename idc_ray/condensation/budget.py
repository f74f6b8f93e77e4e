"""How many tiles an image gets."""

from __future__ import annotations

import math

from idc_ray.condensation.seeding import uniform

__all__ = ["difficulty_budget", "per_image_budget"]


def per_image_budget(ratio: float, candidates: int) -> int:
    """max(1, round(ratio N)): the paper's budget, the same share of every image.

    Args:
        ratio: stored pixels over pixels, in (0, 1].
        candidates: N, how many whole tiles the image holds.
    """
    return max(1, round(ratio * candidates))


def difficulty_budget(ratio: float, candidates: int, weight: float, seed: int, image_id: str) -> int:
    """floor(ratio N w + u) with u uniform in [0, 1) from (seed, image id): more tiles for harder images (ours).

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
