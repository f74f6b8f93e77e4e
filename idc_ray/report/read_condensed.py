"""Reads records, tiles and source images of a condensed set for a report."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from idc_ray.config import CondenseConfig
from idc_ray.degradation import reading
from idc_ray.errors import IdcError, RejectedImage
from idc_ray.images import (
    ImageListing,
    ImageRef,
    decode_image,
    decode_png,
    downscale,
    encode_png,
    find_images,
    load_instance,
    read_encoded,
)
from idc_ray.images import upscale as bicubic
from idc_ray.locate import locate
from idc_ray.redact import printable
from idc_ray.report.locate_tiles import boxes_of_tile
from idc_ray.report.pictures import data_uri, psnr, webp
from idc_ray.report.section import rounded
from idc_ray.status_text import STAGES
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import list_shards
from idc_ray.store.layout import part_contents, shard_name, shard_of
from idc_ray.store.manifest import index_table
from idc_ray.store.parts import list_parts, part_records, read_part
from idc_ray.store.run_record import RunRecord
from idc_ray.store.schema import ROW_SCHEMA, check_types

log = logging.getLogger(__name__)

#: Of more parts, images that are not in a shard yet, the numbers are not read.
PARTS_READ = 2000

#: Longest side of a source image in the page, and of a thumbnail, in pixels.
SOURCE_SIDE, THUMBNAIL_SIDE = 560, 72


def read_records(store: StorageFolder, digest: str) -> tuple[list[dict[str, Any]], int]:
    """Records of finished images, sorted by id, and the number of those that were not read."""
    records = index_table(store).to_pylist()
    for record in records:
        record["seconds"] = dict(record["seconds"])
    there = {record["image_id"] for record in records}
    names = list_parts(store, digest)
    found = part_records(store, names[:PARTS_READ]).values()
    in_parts = {image_id: record for images in found for image_id, record in images.items() if image_id not in there}
    records += map(asdict, in_parts.values())
    unread = sum((part_contents(name) or ("", 0))[1] for name in names[PARTS_READ:])
    return sorted(records, key=lambda record: str(record["image_id"])), unread


def read_tiles(store: StorageFolder, run: RunRecord, image_ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of some images by image; only row groups with any of them are read."""
    rows: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
    for shard in list_shards(store):
        wanted = {image_id for image_id in image_ids if shard_of(image_id, run.shard_count) == shard}
        for row in _rows_of_shard(store, shard, wanted) if wanted else ():
            rows[row["image_id"]].append(row)
    missing = {image_id for image_id in image_ids if not rows[image_id]}
    names = list_parts(store, run.digest) if missing else []
    for name in (name for name, images in part_records(store, names).items() if missing & images.keys()):
        with contextlib.suppress(FileNotFoundError):  # compacted meanwhile
            rows |= {i: table.to_pylist() for i, table in read_part(store, name).tables() if i in missing}
    return rows


def _rows_of_shard(store: StorageFolder, shard: int, wanted: set[str]) -> list[dict[str, Any]]:
    with store.open(shard_name(shard)) as opened:
        check_types(pq.read_schema(opened), ROW_SCHEMA)
        opened.seek(0)
        rows: list[dict[str, Any]] = pq.read_table(opened, filters=[("image_id", "in", wanted)]).to_pylist()
    return rows


class Sources:
    """Source images of a run, if they can still be read.

    Args:
        run: the run.
        listing: its images; None: they are listed here.
        read: False: no source images are read.

    Attributes:
        missing: why there are no source images; empty if there are.
    """

    def __init__(self, run: RunRecord, listing: ImageListing | None, read: bool) -> None:
        self.config = _condense_config(run)
        self.missing = "" if read else "the source images were not read"
        self._listing = listing
        if read and listing is None:
            try:
                self._listing = find_images(
                    run.input_uri,
                    lr_input=run.lr_uri,
                    scale=int(run.config["scale"]),
                    image_column=run.config.get("source", {}).get("image_column"),
                    without=locate(run.config["output"]),
                )
            except (IdcError, OSError, pa.ArrowException) as error:
                self.missing = f"the source images cannot be read from this machine: {error}"
        self._rows: dict[str, dict[str, Any]] = {}

    def find(self, image_ids: Collection[str]) -> None:
        """Look up the manifest rows of some images."""
        if self._listing is None or self.missing:
            return
        manifest = self._listing.manifest
        keep = pa.array([each in image_ids for each in manifest["image_id"].to_pylist()])
        self._rows |= {row["image_id"]: row for row in manifest.filter(keep).to_pylist()}

    def lr(self, image_id: str, sha256: str) -> tuple[NDArray[np.uint8] | None, str]:
        """The condensed LR image, uint8 (h, w, 3); or None and the reason."""
        row = self._rows.get(image_id)
        if row is None or self._listing is None or self.config is None:
            return None, self.missing or "it is not in the input any more"
        try:
            instance = load_instance(
                ImageRef.from_row(row),
                self._listing.filesystem,
                **reading(self.config),
                keep_hr=False,
                lr_filesystem=self._listing.lr_filesystem,
            )
        except (RejectedImage, OSError) as error:
            return None, printable(str(error))
        if instance.source_sha256 != sha256:
            return None, "it has changed since it was condensed"
        return instance.lr, ""

    def thumbnail(self, image_id: str) -> str | None:
        """A thumbnail of a quarantined image, if it can be decoded."""
        row = self._rows.get(image_id)
        if row is None or self._listing is None or self.config is None:
            return None
        try:
            limit = self.config.source.max_pixels
            image = decode_image(read_encoded(ImageRef.from_row(row), self._listing.filesystem, limit), limit)
            return data_uri(webp(image.pixels, THUMBNAIL_SIDE))
        except (RejectedImage, OSError):
            return None


def _condense_config(run: RunRecord) -> CondenseConfig | None:
    try:
        return CondenseConfig.model_validate(run.config)
    except ValueError:  # of another version
        return None


def tile_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows sorted by tile index."""
    return sorted(rows, key=lambda row: int(row["tile_index"]))


def picture_of(record: dict[str, Any], rows: list[dict[str, Any]], sources: Sources, why: str) -> dict[str, Any]:
    """Pictures and numbers of one image, as JSON values."""
    lr_image, missing = sources.lr(record["image_id"], record["source_sha256"])
    exchange = None if sources.config is None else sources.config.exchange
    tiles = []
    for row in tile_rows(rows):
        stored_lr, hr = (None if row[name] is None else decode_png(row[name]["bytes"]) for name in ("lr", "hr"))
        lr = downscale(hr, int(row["scale"])) if stored_lr is None and hr is not None else stored_lr
        assert lr is not None
        corner = None if row["top"] is None else (int(row["top"]), int(row["left"]))
        interpolated = bicubic(lr, int(row["scale"]))
        boxes = []
        if lr_image is not None and exchange is not None and stored_lr is not None:
            boxes = boxes_of_tile(lr_image, lr, corner, exchange.cells, exchange.blend)
        tiles.append(
            {
                "lr": data_uri(encode_png(lr) if stored_lr is None else row["lr"]["bytes"]),
                "hr": None if hr is None else data_uri(row["hr"]["bytes"]),
                "bicubic": data_uri(webp(interpolated)),
                "boxes": [asdict(box) for box in boxes],
                "corner": corner,
                "psnr": None if hr is None else rounded(psnr(interpolated, hr)),
                "weight": row["sample_weight"],
                "labels": row["labels"],
            }
        )
    return {
        "why": why,
        "source": None if lr_image is None else data_uri(webp(lr_image, SOURCE_SIDE)),
        "missing": missing,
        "tiles": tiles,
        "bandwidths": {
            "before": [rounded(value) for value in record["bandwidth_loss_start"]],
            "after": [rounded(value) for value in record["bandwidth_loss_end"]],
        },
        "stages": {STAGES.get(stage, stage): rounded(seconds, 3) for stage, seconds in record["seconds"].items()},
        "device": record["device"],
        "sha256": record["source_sha256"],
    }
