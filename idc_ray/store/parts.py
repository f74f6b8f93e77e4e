"""Parts: one file per finished image, written by the actor that did the work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from idc_ray.errors import IdcError
from idc_ray.objects import StoreUnavailable
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import part_folder, part_id, part_name
from idc_ray.store.records import ImageRecord
from idc_ray.store.schema import ROW_SCHEMA, TileRow, open_writer, table_from_rows
from idc_ray.store.threads import ordered_map

__all__ = ["Part", "commit_part", "list_parts", "read_part", "read_record"]

_RECORD = b"idc_ray.record"
ALL_PREFIXES = [f"{prefix:02x}" for prefix in range(256)]


@dataclass(frozen=True)
class Part:
    """One finished image: its record, and its rows as a table of `ROW_SCHEMA`."""

    record: ImageRecord
    table: pa.Table


def commit_part(storage: StorageFolder, digest: str, record: ImageRecord, rows: Sequence[TileRow]) -> None:
    """Makes an image done. The same again is harmless; an image without tiles commits a part without rows.

    Raises:
        ValueError: the rows do not belong to the record, or are not numbered 0, 1, …
        IdcError: the disk is full.
    """
    if [row.tile_index for row in rows] != list(range(record.tiles)):
        indices = [row.tile_index for row in rows]
        raise ValueError(f"{record.source}: tile indices are {indices}; expected 0 to {record.tiles - 1} in order")
    for row in rows:
        if row.image_id != record.image_id or row.config_digest != digest:
            raise ValueError(
                f"{record.source}: a row has image_id {row.image_id}, digest {row.config_digest}; "
                f"expected {record.image_id}, {digest}"
            )
    table = table_from_rows(rows)
    sink = pa.BufferOutputStream()
    with open_writer(sink, ROW_SCHEMA.with_metadata({**ROW_SCHEMA.metadata, _RECORD: record.to_json()})) as writer:
        if rows:
            writer.write_table(table.replace_schema_metadata(writer.schema.metadata))
    storage.write(part_name(digest, record.image_id), sink.getvalue())


def read_part(storage: StorageFolder, digest: str, image_id: str) -> Part:
    """A finished image that is not in its shard yet.

    Raises:
        FileNotFoundError: there is no such part.
        IdcError: it cannot be read, or is another image's.
    """
    name = part_name(digest, image_id)
    try:
        data = storage.read(name)  # whole: by columns it would be a request for each of them
        if data is None:
            raise FileNotFoundError(storage.shown(name))
        parquet = pq.ParquetFile(pa.BufferReader(data))
        record = _record(parquet.metadata)
        table = parquet.read().replace_schema_metadata(ROW_SCHEMA.metadata)
    except (FileNotFoundError, StoreUnavailable):
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _unreadable(storage, name, str(error)) from error
    if record.image_id != image_id or table.num_rows != record.tiles or table.schema != ROW_SCHEMA:
        found = f"it holds {table.num_rows} rows of {record.image_id}, expected {record.tiles} of {image_id}"
        raise _unreadable(storage, name, found)
    return Part(record, table)


def read_record(storage: StorageFolder, digest: str, image_id: str) -> ImageRecord:
    """The record of a part, from its footer alone; errors as `read_part`."""
    name = part_name(digest, image_id)
    try:
        with storage.open(name) as file:
            return _record(pq.read_metadata(file))
    except (FileNotFoundError, StoreUnavailable):
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _unreadable(storage, name, str(error)) from error


def list_parts(storage: StorageFolder, digest: str, prefixes: Iterable[str] = ALL_PREFIXES) -> set[str]:
    """The ids of all finished images that are not in a shard yet; up to 256 listings in threads, no file is opened.

    Args:
        storage: the output.
        digest: the run's digest.
        prefixes: list only the ids that start with these two hex digits.
    """
    there = set(storage.folders(part_folder(digest)))  # most prefixes have no folder, once shards are compacted
    listings = ordered_map(lambda prefix: storage.files(part_folder(digest, prefix)), there.intersection(prefixes))
    return {image_id for names in listings for name in names if (image_id := part_id(name)) is not None}


def _record(metadata: pq.FileMetaData) -> ImageRecord:
    return ImageRecord.from_json((metadata.metadata or {})[_RECORD])


def _unreadable(storage: StorageFolder, name: str, why: str) -> IdcError:
    return IdcError(
        f"{storage.shown(name)} is not a complete part ({why}); delete that file and run the same command again: "
        "the image is condensed again"
    )
