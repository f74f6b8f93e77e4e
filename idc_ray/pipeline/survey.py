"""How difficult the images are on average: what ``allocation: difficulty`` measures each image against."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow.compute as pc
import ray

from idc_ray.condensation.budget import SURVEY_IMAGES, mean_difficulty
from idc_ray.images import ImageListing
from idc_ray.pipeline.cluster import plan_pool
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.stream import survey_stream

__all__ = ["survey"]

log = logging.getLogger(__name__)


def survey(listing: ImageListing, job: Job, teacher: ray.ObjectRef[bytes]) -> dict[str, Any]:
    """Measure a sample: the images with the smallest ids, which say nothing about their content.

    Returns:
        ``mean_difficulty``, weighted by pixels so that the budget is met, and how many ``images`` it rests on.

    Raises:
        BadRequest: no image of the sample can be read, or the teacher adds nothing to any of them.
    """
    sample = listing.manifest.take(pc.sort_indices(listing.manifest["image_id"])[:SURVEY_IMAGES])
    pool = plan_pool(job.config.actors, ray.cluster_resources(), sample.num_rows)
    log.info("measuring the difficulty of %d images", sample.num_rows)
    measured = survey_stream(sample, job, teacher, pool)
    return mean_difficulty(measured)
