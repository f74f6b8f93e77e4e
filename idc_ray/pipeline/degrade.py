"""The degrade job: LR images of a folder of HR images."""

from __future__ import annotations

import posixpath
import time
from collections import Counter
from functools import partial
from typing import Any

import pyarrow.fs as pafs

from idc_ray.config.degrade import DegradeConfig
from idc_ray.degradation import Degrade
from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.images import IMAGE_ENDINGS, ImageRef, Instance, encode_png, load_instance
from idc_ray.lifecycle import print_plan, ray_cluster
from idc_ray.pipeline.cluster import data_settings, join
from idc_ray.pipeline.each_image import ImageJob, find_input_images, image_job
from idc_ray.pipeline.progress import Show
from idc_ray.store.filesystem import StorageFolder
from idc_ray.units import duration, estimate_text, size

#: Folders of the output: LR images, and the parameters of each. Name of the record.
IMAGES, PARAMETERS, RECORD = "LR", "parameters", "degradation.json"

#: Images that a dry run reads.
SAMPLED_IMAGES = 4


def degrade(config: DegradeConfig) -> int:
    """The command: :func:`run_degrade`, or an estimate.

    Returns:
        The exit code: 0.

    Raises:
        IdcError, Interrupted: as :func:`run_degrade`.
    """
    if print_plan(config, lambda _: _estimate(config)):
        done = run_degrade(config, "lines")
        print(f"{done.listing.manifest.num_rows - len(done.quarantined())} images in {done.storage.shown(IMAGES)}")
    return 0


def run_degrade(config: DegradeConfig, show: Show = "log") -> ImageJob:
    """Degrade; a repeated call continues with the images that are missing or have changed.

    Writes ``LR/NAME.png``, ``parameters/IMAGE-ID.json`` with what was drawn, and ``degradation.json`` with the
    settings.

    Raises:
        BadRequest: no images, two of one name, or an output of other settings.
        IdcError, Interrupted: as :func:`idc_ray.curation.job.run_curate`.
    """
    with image_job(config, config.digest(), RECORD, show) as job:
        sources = job.listing.manifest["source"].to_pylist()
        twice = next((name for name, count in Counter(map(lr_name, sources)).items() if count > 1), None)
        if twice is not None:
            both = [source for source in sources if lr_name(source) == twice]
            raise BadRequest(f"the LR images of {' and '.join(both)} would be {twice}; rename one of the images")
        rows, _ = job.missing(PARAMETERS)
        if rows.num_rows:
            with ray_cluster(lambda: join(config.ray_address)), data_settings():
                job.run(rows, PARAMETERS, partial(_degrade, config, job.listing.filesystem, job.storage))
        job.finish({"images": len(sources), "quarantined": len(job.quarantined())}, {})
    return job


def lr_name(source: str) -> str:
    """Name of an LR image: that of its HR image with the extension png."""
    stem, ending = posixpath.splitext(source)
    return f"{stem if ending[1:].lower() in IMAGE_ENDINGS else source}.png"


def _degrade(
    config: DegradeConfig, filesystem: pafs.FileSystem, storage: StorageFolder, ref: ImageRef
) -> dict[str, Any]:
    name = f"{IMAGES}/{lr_name(ref.source)}"
    storage.write(name, encode_png(_read(config, filesystem, ref).lr))
    return {"file": name, "degradation": Degrade(config.degradation, config.seed).drawn(ref.image_id)}


def _read(config: DegradeConfig, filesystem: pafs.FileSystem, ref: ImageRef) -> Instance:
    return load_instance(
        ref, filesystem, scale=config.scale, tile_size=1, max_pixels=config.max_pixels, keep_hr=False,
        degrade=Degrade(config.degradation, config.seed), colors=config.color_profile,
    )  # fmt: skip


def _estimate(config: DegradeConfig) -> str:
    """Images, bytes and time, from a few images."""
    listing = find_input_images(config)
    rows = listing.manifest.sort_by("image_id").slice(0, SAMPLED_IMAGES).to_pylist()
    written = unreadable = 0
    begin = time.perf_counter()
    for row in rows:
        try:
            written += len(encode_png(_read(config, listing.filesystem, ImageRef.from_row(row)).lr))
        except RejectedImage:
            unreadable += 1
    share = listing.manifest.num_rows / len(rows)
    lines = {
        "images": f"{listing.manifest.num_rows} in {listing.uri}",
        "bytes": f"about {size(written * share)}",
        "time": f"about {duration((time.perf_counter() - begin) * share)} of one core",
        "estimated from": f"{len(rows)} images, {unreadable} of which cannot be used",
    }
    return estimate_text(lines.items())
