"""Dry run of condensing: counts, sizes, and time extrapolated from two images."""

from __future__ import annotations

import time

import torch

from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import Condensed, ImageTask, needs_hr
from idc_ray.config import CondenseConfig
from idc_ray.cpus import usable_cpus
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import ImageListing, Instance
from idc_ray.pipeline.device import set_up_torch
from idc_ray.pipeline.inputs import estimate_sizes, readable_samples
from idc_ray.pipeline.job import Job
from idc_ray.units import duration, estimate_text, size

TIMED_IMAGES = 2
SHOWN_REASONS = 3
COUNTED_IMAGES = 16
#: Steps that are timed; the rest is proportional.
TIMED_STEPS = 5


def estimate(job: Job, listing: ImageListing, teacher: bytes) -> str:
    """Images, tiles, budget, bytes and time of a run, as text.

    Raises:
        BadRequest: no image of the sample can be read.
        IdcError: one of the timed images cannot be condensed.
    """
    config, images = job.config, listing.manifest.num_rows
    rejected: list[str] = []
    samples = list(readable_samples(listing, config, COUNTED_IMAGES, on_rejected=rejected.append))
    if not samples:
        raise BadRequest(none_readable(listing, rejected))
    sizes = estimate_sizes(config, images, samples)
    share = sizes.tiles * config.tile_size**2 / sizes.pixels
    device = set_up_torch(config.actors, has_gpu=torch.cuda.is_available())
    per_image = seconds_per_image(config, samples[:TIMED_IMAGES], teacher, device)
    workers = config.actors.max_size or (torch.cuda.device_count() if device.type == "cuda" else usable_cpus())
    lines = {
        "images": f"{images} in {listing.uri}",
        "tiles": f"about {sizes.candidates:.0f} of {config.tile_size} x {config.tile_size} LR pixels",
        "budget": f"about {sizes.tiles:.0f} tiles, {100 * share:.3g} % of the pixels",
        "bytes": f"about {size(sizes.bytes)}",
        "time": f"about {duration(per_image * images / workers)} with {workers} workers like this machine's "
        f"{device.type}: {per_image:.3g} s per image",
        "estimated from": f"{len(samples)} images for sizes, {min(len(samples), TIMED_IMAGES)} for time",
    }
    if rejected:
        lines["unreadable"] = f"{len(rejected)} of {len(rejected) + len(samples)} sampled images: {_some(rejected)}"
    return estimate_text(lines.items())


def none_readable(listing: ImageListing, rejected: list[str]) -> str:
    """Error with the first few reasons why images cannot be read."""
    return f"none of {len(rejected)} images of a sample of {listing.uri} can be used: {_some(rejected)}"


def _some(reasons: list[str]) -> str:
    more = len(reasons) - SHOWN_REASONS
    return "; ".join(reasons[:SHOWN_REASONS]) + (f"; and {more} more" if more > 0 else "")


def seconds_per_image(config: CondenseConfig, samples: list[Instance], teacher: bytes, device: torch.device) -> float:
    """Seconds per image, from two images with one step and with a few, as all steps take the same time."""
    plain = config.model_copy(update={"allocation": "per_image"})  # the survey of difficulties would start the job
    tasks = [ImageTask(s.image_id, s.lr, s.hr if needs_hr(config) else None) for s in samples]
    first = int(config.matches)  # none means that nothing is matched, and costs less than the rest
    more = min(TIMED_STEPS, config.pixel_steps - first) if config.synthesizes_tiles else 0
    fixed, some = (
        _timed(load_condenser(plain.model_copy(update={"iterations": n}), teacher, device), tasks)
        for n in (first, first + max(0, more))
    )
    per_step = max(0.0, some - fixed) / more if more > 0 else 0.0
    return (fixed + per_step * max(0, config.pixel_steps - first)) / len(samples)


def _timed(condenser: Condenser, tasks: list[ImageTask]) -> float:
    begin = time.perf_counter()
    for result in condenser.condense(tasks):
        if not isinstance(result, Condensed):
            fix = "run without --dry-run to quarantine such images"
            raise IdcError(f"an image of the sample cannot be condensed ({result}); {fix}") from result
    return time.perf_counter() - begin
