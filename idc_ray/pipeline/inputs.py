"""Inputs of an attempt: teacher, images, and changes of the sources of finished images."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from idc_ray.condensation.budget import expected_tiles
from idc_ray.config import CondenseConfig
from idc_ray.degradation import reading
from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.images import (
    ImageListing,
    ImageRef,
    Instance,
    find_images,
    grid_count,
    load_instance,
    output_inside,
    read_encoded,
)
from idc_ray.images.names import read_bytes
from idc_ray.locate import locate
from idc_ray.models import bundled_teacher_bytes
from idc_ray.photographs import write_photographs
from idc_ray.pipeline.duplicates import without_copies, without_repeated_frames
from idc_ray.redact import printable
from idc_ray.store.done import DoneImages
from idc_ray.store.threads import ordered_map

log = logging.getLogger(__name__)


#: Bytes of an 8-bit RGB pixel as PNG; natural tiles take 2 to 2.6 of the 3.
PNG_BYTES_PER_PIXEL = 2.4


def read_teacher(config: CondenseConfig) -> bytes:
    """Read the teacher's checkpoint.

    Raises:
        BadRequest: it cannot be read, or there is no bundled one for the scale.
    """
    if config.teacher is None:
        return bundled_teacher_bytes(config.scale)
    return read_bytes(config.teacher, "--teacher")


def find_input(config: CondenseConfig, photographs: str | None = None) -> ImageListing:
    """Find the images of a configuration, without those in its output; by default photographs of scikit-image.

    Args:
        config: the configuration.
        photographs: folder for the default photographs; None: a folder next to the output.

    Raises:
        BadRequest: there are no images, or they cannot be listed or copied.
    """
    if config.input is not None:
        source = config.source
        listing = find_images(
            config.input,
            lr_input=source.lr_input,
            scale=config.scale,
            image_column=source.image_column,
            without=output_inside(config.input, config.output),
        )
        if config.duplicates == "skip":
            listing = without_copies(listing, source.max_pixels)
        if config.clips is not None:
            listing = without_repeated_frames(listing, config.clips, source.max_pixels)
        return listing
    output = locate(config.output)
    if photographs is None and not output.local:
        raise BadRequest("the default photographs need a local --output; give images with --input")
    folder = photographs or f"{output.path}.photographs"
    try:
        return find_images(str(write_photographs(folder)))
    except OSError as error:
        raise BadRequest(
            f"the default photographs cannot be copied to {folder} ({error}); choose another --output, or name images "
            "with --input"
        ) from None


def readable_samples(
    listing: ImageListing,
    config: CondenseConfig,
    count: int,
    most_tried: int | None = None,
    on_rejected: Callable[[str], object] = bool,
) -> Iterator[Instance]:
    """Up to ``count`` readable images in the order of their ids, a sample that does not depend on names.

    Args:
        listing: the images.
        config: settings for reading them.
        count: maximum number of images.
        most_tried: maximum number of images to try; None: four times ``count``.
        on_rejected: called with source and reason of each unreadable image.
    """
    order = pc.sort_indices(listing.manifest["image_id"])
    readable = 0
    for index in order[: 4 * count if most_tried is None else most_tried]:
        if readable == count:
            return
        (row,) = listing.manifest.slice(index.as_py(), 1).to_pylist()
        try:
            instance = load_instance(
                ImageRef.from_row(row),
                listing.filesystem,
                **reading(config),
                keep_hr=True,
                lr_filesystem=listing.lr_filesystem,
            )
        except RejectedImage as error:
            on_rejected(f"{printable(row['source'])}: {error.reason} [{error.code}]")
            continue
        readable += 1
        yield instance


@dataclass(frozen=True)
class Sizes:
    """Expected sizes of a whole run, from a few of its images.

    Attributes:
        pixels: LR pixels of all images.
        candidates: number of whole tiles in all images.
        tiles: number of stored tiles.
        bytes: size of the output.
    """

    pixels: float
    candidates: float
    tiles: float
    bytes: float


def estimate_sizes(config: CondenseConfig, images: int, samples: list[Instance]) -> Sizes:
    """Extrapolate sizes from samples; all are 0 without samples."""
    if not samples:
        return Sizes(0, 0, 0, 0)
    size = config.tile_size
    sides = [sample.lr.shape[:2] for sample in samples]
    counts = [grid_count(height, width, size) for height, width in sides]
    tiles = sum(expected_tiles(config.ratio, height, width, size) for height, width in sides)
    share = images / len(samples)
    pixels = sum(height * width for height, width in sides)
    stored = tiles * size**2 * {"lr": 1, "hr": config.scale**2, "pairs": 1 + config.scale**2}[config.store.tiles]
    return Sizes(pixels * share, sum(counts) * share, tiles * share, stored * share * PNG_BYTES_PER_PIXEL)


def changed_sources(listing: ImageListing, done: DoneImages) -> list[dict[str, str]]:
    """Finished images whose source has changed, as manifest rows.

    A source with the same size and modification time is unchanged, one with another size is changed. If only the time
    differs, as after copying the input, the content is compared, in threads. Rows of Parquet files have neither, so
    changes inside such files are not detected.
    """
    manifest = listing.manifest
    then = done.table.select(["source_bytes", "source_mtime_ns"]).take(
        pc.index_in(manifest["image_id"], value_set=done.table["image_id"])
    )
    other = pc.or_(  # null for images that are not finished, which the filter drops
        pc.not_equal(manifest["size"], then["source_bytes"]),
        pc.not_equal(pc.max_element_wise(manifest["mtime_ns"], 0), then["source_mtime_ns"]),
    )
    suspects = manifest.filter(pc.and_(pc.greater_equal(manifest["size"], 0), other)).to_pylist()
    if suspects:
        log.info("%d finished images have a new modification time or size; comparing their content", len(suspects))
    finished = only(done.table, {row["image_id"] for row in suspects}).to_pylist()
    states = {row["image_id"]: row for row in finished}
    same = ordered_map(lambda row: _is_same(listing, row, states[row["image_id"]]), suspects)
    return [row for row, unchanged in zip(suspects, same, strict=True) if not unchanged]


def _is_same(listing: ImageListing, row: dict[str, Any], finished: dict[str, Any]) -> bool:
    if row["size"] != finished["source_bytes"]:
        return False
    try:
        data = read_encoded(ImageRef.from_row(row), listing.filesystem, sys.maxsize)
    except RejectedImage:
        return False
    return hashlib.sha256(data).hexdigest() == finished["source_sha256"]


def only(table: pa.Table, image_ids: set[str]) -> pa.Table:
    """Rows of some images, in the table's order."""
    return table.filter(pc.is_in(table["image_id"], pa.array(sorted(image_ids), pa.string())))
