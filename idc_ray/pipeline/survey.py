"""Measures the mean difficulty of the images, for ``allocation: difficulty``."""

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
    """Measure a sample of the images, those with the smallest ids, which are independent of content.

    Returns:
        ``mean_difficulty``, weighted by pixels so that the budget is met, and the number of measured ``images``.

    Raises:
        BadRequest: no image of the sample can be read, or the teacher equals bicubic interpolation on all.
    """
    sample = listing.manifest.take(pc.sort_indices(listing.manifest["image_id"])[:SURVEY_IMAGES])
    pool = plan_pool(job.config.actors, ray.cluster_resources(), sample.num_rows)
    log.info("measuring the difficulty of %d images", sample.num_rows)
    measured = survey_stream(sample, job, teacher, pool)
    return mean_difficulty(measured)
