"""How difficult the images are on average: what ``allocation: difficulty`` measures each image against."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import pyarrow.compute as pc
import ray

from idc_ray.errors import BadRequest
from idc_ray.images import Found
from idc_ray.pipeline.cluster import plan_pool
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.stream import survey_stream

__all__ = ["SURVEY_IMAGES", "mean_difficulty", "survey"]

log = logging.getLogger(__name__)

#: Images in the sample (ours): the mean of natural images' difficulties is then known to about a tenth.
SURVEY_IMAGES = 64


def survey(found: Found, job: Job, teacher: ray.ObjectRef[bytes]) -> dict[str, Any]:
    """Measure a sample: the images with the smallest ids, which say nothing about their content.

    Returns:
        ``mean_difficulty``, weighted by pixels so that the budget is met, and how many ``images`` it rests on.

    Raises:
        BadRequest: no image of the sample can be read, or the teacher adds nothing to any of them.
    """
    sample = found.manifest.take(pc.sort_indices(found.manifest["image_id"])[:SURVEY_IMAGES])
    pool = plan_pool(job.config.actors, ray.cluster_resources(), sample.num_rows)
    log.info("measuring the difficulty of %d images", sample.num_rows)
    measured = survey_stream(sample, job, teacher, pool)
    return mean_difficulty(measured)


def mean_difficulty(measured: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The survey's result from rows of ``image_id``, ``difficulty`` (None: not read) and ``pixels``, in any order.

    Raises:
        BadRequest: as :func:`survey`.
    """
    listed = list(measured)
    # NaN: the teacher failed on that image, which will be quarantined; in the mean it would fail all the others.
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
