"""Moves the parts of a hash range into its shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from operator import itemgetter

import pyarrow as pa
import pyarrow.parquet as pq

from idc_ray.errors import IdcError
from idc_ray.store import index as index_files
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import ShardInfo
from idc_ray.store.layout import (
    FIX_DAMAGE,
    MANIFEST,
    part_folders_of_shard,
    pending_name,
    shard_name,
    shard_of,
    shard_parts,
)
from idc_ray.store.parts import Part, list_parts, read_part
from idc_ray.store.records import ImageRecord, records_from_table
from idc_ray.store.shards import fingerprint_of, merge, shard_bytes
from idc_ray.store.threads import ordered_map

READERS = 8  # threads; at most twice as many parts are in memory


def compact(storage: StorageFolder, digest: str, shard: int, shard_count: int) -> ShardInfo | None:
    """Merge a shard with the parts of its range, writes its index, deletes the parts.

    A part wins over the rows of the same image in the shard: so a redone image replaces its rows. Killed between any
    two steps, it is repeated with the same result. Only one process at a time may do this to a shard.

    Memory: the new shard, a row group of the old one, and a dozen parts.

    Returns:
        The shard, None if its range has neither shard nor parts.

    Raises:
        IdcError: the shard, its index or a part is damaged.
    """
    names = shard_parts(list_parts(storage, digest, part_folders_of_shard(shard, shard_count)), shard_count).get(shard)
    entry = index_files.read_index(storage, shard)
    if entry is not None and (entry.info.digest, entry.info.shard_count) != (digest, shard_count):
        raise IdcError(
            f"shard {shard} of {storage.uri} is one of {entry.info.shard_count} with digest {entry.info.digest}; "
            f"expected {shard_count} with {digest}; the output contains another run: choose another --output"
        )
    if not names:
        return _finish(storage, shard, entry.info if entry else None)

    found = index_files.verify_shard(storage, shard, entry.info if entry else None)
    records = {record.image_id: record for record in records_from_table(entry.table)} if entry else {}
    parts = zip(names, ordered_map(partial(read_part, storage), names, READERS), strict=True)
    images = _in_order(storage, parts, (shard, shard_count), records)
    if found is None:
        data = shard_bytes(merge(None, images))
    else:
        with storage.open(shard_name(shard)) as file:
            data = shard_bytes(merge(pq.ParquetFile(file), images))
    rows = pq.read_metadata(pa.BufferReader(data)).num_rows
    if rows != sum(record.tiles for record in records.values()):
        raise IdcError(
            f"{storage.shown(shard_name(shard))} would get {rows} rows, but its images have "
            f"{sum(record.tiles for record in records.values())} tiles: it has rows of images that are not in its "
            f"index; {FIX_DAMAGE}"
        )
    new = fingerprint_of(data)
    info = ShardInfo(
        file=shard_name(shard), shard=shard, shard_count=shard_count, digest=digest, images=len(records),
        rows=rows, bytes=new.bytes, sha256=new.sha256,
    )  # fmt: skip

    storage.delete(MANIFEST)  # it would describe shards that are no longer these
    storage.sync("")
    index_files.write_pending(storage, shard, [found, new] if found else [new])
    storage.write(shard_name(shard), data)
    index_files.write_index(storage, info, records.values())
    for _ in ordered_map(storage.delete, names):
        pass
    storage.delete(pending_name(shard))
    return info


def _in_order(
    storage: StorageFolder,
    parts: Iterable[tuple[str, Part]],
    shard_and_count: tuple[int, int],
    records: dict[str, ImageRecord],
) -> Iterator[tuple[str, pa.Table]]:
    """Ids and rows of the images of parts that are sorted by their first id; adds the records to ``records``.

    Parts overlap where batches do. An image may be in two of them if a worker was taken for dead: the later counts.
    """
    shard, shard_count = shard_and_count
    waiting: dict[str, pa.Table] = {}
    for name, part in parts:
        first = next(iter(part.records))
        for image_id in sorted(each for each in waiting if each < first):
            yield image_id, waiting.pop(image_id)
        if any(shard_of(image_id, shard_count) != shard for image_id in part.records):
            raise IdcError(f"{storage.shown(name)} has images of several shards; {FIX_DAMAGE}")
        records.update(part.records)
        waiting.update(part.tables())
    yield from sorted(waiting.items(), key=itemgetter(0))


def _finish(storage: StorageFolder, shard: int, info: ShardInfo | None) -> ShardInfo | None:
    """End a compaction that was killed after its last part was deleted; without one, changes nothing."""
    allowed = index_files.read_pending(storage, shard)
    if allowed is None:
        return info
    if info is None or info.fingerprint not in allowed:
        raise IdcError(
            f"{storage.shown(pending_name(shard))} says that shard {shard} was being replaced, but its parts are gone; "
            f"{FIX_DAMAGE}"
        )
    index_files.verify_shard(storage, shard, info)
    storage.delete(pending_name(shard))
    return info
