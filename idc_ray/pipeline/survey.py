"""How many tiles each image of a run gets, so that the run has the ratio asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from idc_ray.condensation.budget import SURVEY_IMAGES, budgets_of, mean_difficulty
from idc_ray.errors import IdcError, RejectedImage
from idc_ray.images import ImageListing, ImageRef
from idc_ray.images.clips import clip_of
from idc_ray.images.instance import read_size
from idc_ray.pipeline.cluster import plan_pool
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.outage import outage
from idc_ray.pipeline.stream import survey_stream
from idc_ray.store.layout import SURVEY
from idc_ray.store.sealed import sealed, unsealed
from idc_ray.store.threads import ordered_map

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """Result of the survey of a run's images; all launches of a run use that of the first.

    Attributes:
        budgets: tiles by image id; of more than ``SURVEY_IMAGES`` images, of none.
        mean_difficulty: of the images or of a sample, for ``allocation: difficulty``; else None.
    """

    budgets: dict[str, int]
    mean_difficulty: float | None = None


def survey(listing: ImageListing, job: Job, teacher: ray.ObjectRef[bytes]) -> Survey:
    """The survey that the output holds; otherwise it is made, and written.

    Raises:
        BadRequest: no image can be read, or the teacher adds nothing to any of them.
    """
    found = _read(job)
    if found is None:
        found = _measure(listing, job, teacher)
        job.store.write_json(SURVEY, sealed({"digest": job.digest, **asdict(found)}))
    return found


def _read(job: Job) -> Survey | None:
    fix = "the images are surveyed again"
    try:
        value = job.store.read_json(SURVEY, fix)
        if value is None or value.get("digest") != job.digest:
            return None
        value = unsealed(value, job.store.shown(SURVEY), fix)
        return Survey(value["budgets"], value["mean_difficulty"])
    except (IdcError, KeyError) as error:
        log.warning("%s", error)
        return None


def _measure(listing: ImageListing, job: Job, teacher: ray.ObjectRef[bytes]) -> Survey:
    manifest, config = listing.manifest, job.config
    few = manifest.num_rows <= SURVEY_IMAGES
    if config.allocation == "per_image":
        sizes = _sizes(listing, job) if few else ()
        return Survey(budgets_of(config, _with_clips(sizes, job, manifest)))
    # The smallest ids say nothing about the content.
    sample = manifest if few else manifest.take(pc.sort_indices(manifest["image_id"])[:SURVEY_IMAGES])
    pool = plan_pool(config.actors, ray.cluster_resources(), sample.num_rows)
    log.info("measuring the difficulty of %d images", sample.num_rows)
    rows = list(survey_stream(sample, job, teacher, pool))
    mean = float(mean_difficulty(rows)["mean_difficulty"])
    return Survey(budgets_of(config, _with_clips(rows, job, manifest) if few else ()), mean)


def _sizes(listing: ImageListing, job: Job) -> Iterator[dict[str, Any]]:
    """LR sizes by the headers of the images; those that cannot be read are left out, and quarantined later.

    Raises:
        IdcError: none can be read, as where a store is down: without sizes they would have other budgets.
    """
    config = job.config

    def size(row: dict[str, Any]) -> dict[str, Any] | None:
        ref = ImageRef.from_row(row)
        try:
            width, height = read_size(ref, listing.filesystem, config.source.max_pixels)
        except RejectedImage as error:
            if (reason := outage(error, ref, job.filesystem, job.input_uri, job.root, job.samples)) is not None:
                raise IdcError(reason) from None
            return None
        return {"image_id": row["image_id"], "height": height // config.scale, "width": width // config.scale}

    rows = (row for batch in _batches(listing.manifest) for row in batch)
    return (found for found in ordered_map(size, rows) if found is not None)


def _with_clips(rows: Iterable[dict[str, Any]], job: Job, manifest: pa.Table) -> Iterable[dict[str, Any]]:
    clips = job.config.clips
    if clips is None:
        return rows
    sources = dict(zip(manifest["image_id"].to_pylist(), manifest["source"].to_pylist(), strict=True))
    named = ((row, sources[row["image_id"]]) for row in rows)
    return ({**row, "clip": clip_of(source, clips), "frame": source} for row, source in named)


def _batches(manifest: pa.Table) -> Iterator[list[dict[str, Any]]]:
    return (batch.to_pylist() for batch in manifest.to_batches(max_chunksize=1024))
