"""The finished images of an output."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import list_index, list_shards, read_index, verify_shard
from idc_ray.store.layout import FIX_DAMAGE, index_name
from idc_ray.store.manifest import Manifest, read_manifest
from idc_ray.store.parts import list_parts, part_records
from idc_ray.store.records import table_from_records
from idc_ray.store.shards import check_footer
from idc_ray.store.threads import ordered_map

_logger = logging.getLogger(__name__)

_COLUMNS = ("image_id", "source_bytes", "source_mtime_ns", "source_sha256")


@dataclass(frozen=True)
class DoneImages:
    """The finished images; iterates over their ids.

    Attributes:
        table: a row for each: image_id, source_bytes, source_mtime_ns and source_sha256.
        in_parts: the ids of those that are in a part, and so not (or not for the last time) in a shard.
    """

    table: pa.Table
    in_parts: set[str]

    def __len__(self) -> int:
        return self.table.num_rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.table["image_id"].to_pylist())


def find_done(storage: StorageFolder, digest: str) -> DoneImages:
    """Read the indexes and the parts' footers. The shards' sizes and footers are checked, not their checksums.

    Shards that the manifest lists and that are gone with their indexes are logged: their images are not done.

    Raises:
        IdcError: a shard is missing, of another size or number of rows than its index states, belongs to another run,
            or has no index; or the manifest, an index or a part is damaged.
    """

    def entry(shard: int) -> pa.Table:
        found = read_index(storage, shard, _COLUMNS)
        if found is None:
            raise IdcError(
                f"the index of shard {shard} of {storage.uri} disappeared while it was read; "
                "another job may be using it"
            )
        if found.info.digest != digest:
            name = storage.shown(found.info.file)
            raise IdcError(f"the index of {name} has digest {found.info.digest}, expected {digest}")
        if indexes.get(shard, found.fingerprint) != found.fingerprint:
            index = storage.shown(index_name(shard))
            raise IdcError(f"{index} does not match its checksum in the manifest; {FIX_DAMAGE}")
        fingerprint = verify_shard(storage, shard, found.info, full=False)
        check_footer(storage, shard, found.info.rows if fingerprint == found.info.fingerprint else None)
        return found.table

    # Parts first: a compaction that runs meanwhile moves images from parts to indexes, so none is missed.
    parts = part_records(storage, list_parts(storage, digest))
    in_parts = {image_id: record for records in parts.values() for image_id, record in records.items()}
    shards = list_index(storage)
    manifest = read_manifest(storage)
    indexes = {} if manifest is None else manifest.index_fingerprints
    for shard in sorted(set(list_shards(storage)) - set(shards)):
        verify_shard(storage, shard, None, full=False)
    if manifest is not None:
        _log_missing(manifest, set(shards))
    redone = pa.array(sorted(in_parts), pa.string())  # they replace the rows of the same images in shards
    tables = (table.filter(pc.invert(pc.is_in(table["image_id"], redone))) for table in ordered_map(entry, shards))
    return DoneImages(
        pa.concat_tables([table_from_records(in_parts.values()).select(_COLUMNS), *tables]), set(in_parts)
    )


def _log_missing(manifest: Manifest, shards: set[int]) -> None:
    """Logs which shards of a finished run are gone with their indexes."""
    for info in manifest.shards:
        if info.shard not in shards:
            _logger.warning("%s and its index are missing; condensing its %d images again", info.file, info.images)
