"""What is shown and stored at the end of a run: summary, gallery."""

from __future__ import annotations

import io
import logging
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from idc_ray.config import CondenseConfig
from idc_ray.degradation import reading
from idc_ray.errors import RejectedImage
from idc_ray.images import ImageListing, ImageRef, decode_png, load_instance
from idc_ray.pipeline.gallery import GalleryEntry, gallery_png
from idc_ray.pipeline.inputs import only
from idc_ray.pipeline.summary import RECORD_COLUMNS, Summary
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import check_shards
from idc_ray.store.layout import shard_of
from idc_ray.store.manifest import index_table
from idc_ray.store.quarantine import list_quarantined
from idc_ray.store.shards import read_shard

log = logging.getLogger(__name__)

GALLERY = "gallery.png"


def summarise(summary: Summary, store: StorageFolder, digest: str, done_before: int) -> None:
    """Add every finished image of the output to a summary, whichever launch did it, and what was quarantined."""
    for batch in index_table(store, RECORD_COLUMNS).to_batches(max_chunksize=4096):
        for record in batch.to_pylist():
            summary.add(record)
    summary.duplicates = duplicates(store)
    summary.done -= done_before
    summary.done_before += done_before
    summary.bytes_out = sum(info.bytes for info in check_shards(store, full=False))
    for entry in list_quarantined(store, digest):
        summary.add_quarantined(entry.source, entry.code, entry.reason)


def duplicates(store: StorageFolder) -> list[list[str]]:
    """Sources of the finished images whose files are the same byte for byte, in groups; all sorted."""
    table = index_table(store, ["source", "source_sha256"])
    groups = table.group_by("source_sha256").aggregate([("source", "count"), ("source", "list")])
    several = groups.filter(pc.greater(groups["source_count"], 1))
    return sorted(sorted(sources) for sources in several["source_list"].to_pylist())


def draw_gallery(config: CondenseConfig, listing: ImageListing, store: StorageFolder) -> bytes | None:
    """PNG of some condensed images beside what they were made from; None if there is nothing to show."""
    table = index_table(store, ["image_id", "tiles"])
    ids = table.filter(pc.greater(table["tiles"], 0))["image_id"].to_pylist()
    if not ids or not config.gallery_images:
        return None
    step = max(1, len(ids) // config.gallery_images)
    chosen = set(ids[::step][: config.gallery_images])
    entries = []
    rows = _rows_of(store, chosen)
    for row in only(listing.manifest, chosen).to_pylist():
        try:
            entries.append(_entry(config, listing, row, rows[row["image_id"]]))
        except (RejectedImage, OSError) as error:
            log.warning("%s is not in the gallery: %s", row["source"], error)
    if not entries:
        return None
    buffer = io.BytesIO()
    gallery_png(entries).save(buffer, "PNG")
    return buffer.getvalue()


def _rows_of(store: StorageFolder, image_ids: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of some images, by image; one shard in memory at a time."""
    rows: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
    wanted = pa.array(sorted(image_ids), pa.string())
    for info in check_shards(store, full=False):
        if not any(shard_of(image_id, info.shard_count) == info.shard for image_id in image_ids):
            continue
        shard = read_shard(store, info.shard)
        for row in shard.filter(pc.is_in(shard["image_id"], wanted)).to_pylist():
            rows[row["image_id"]].append(row)
    return rows


def _entry(
    config: CondenseConfig, listing: ImageListing, manifest_row: dict[str, Any], rows: list[dict[str, Any]]
) -> GalleryEntry:
    instance = load_instance(
        ImageRef.from_row(manifest_row),
        listing.filesystem,
        **reading(config),
        keep_hr=False,
        lr_filesystem=listing.lr_filesystem,
    )
    if instance.source_sha256 != rows[0]["source_sha256"]:
        raise RejectedImage("changed", "the source image changed after it was condensed")
    size = config.tile_size
    corners = [(row["top"], row["left"]) for row in rows if row["top"] is not None] or [(0, 0)]
    return GalleryEntry(
        source=instance.source,
        real=[Image.fromarray(instance.lr[top : top + size, left : left + size]) for top, left in corners],
        lr=[Image.fromarray(decode_png(row["lr"]["bytes"])) for row in rows if row["lr"]],
        hr=[Image.fromarray(decode_png(row["hr"]["bytes"])) for row in rows if row["hr"]],
        loss_start=rows[0]["loss_start"],
        loss_end=rows[0]["loss_end"],
    )
