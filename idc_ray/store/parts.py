"""Parts: finished images that are not in a shard yet, a file for each call of a worker that condensed them together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import part_contents, part_folder, part_name, shard_of
from idc_ray.store.records import ImageRecord
from idc_ray.store.schema import ROW_SCHEMA, TileRow, open_writer, table_from_rows
from idc_ray.store.threads import ordered_map

_RECORDS = b"idc_ray.records"
_RECORD = b"idc_ray.record"  # of the one image of a part of format version 1

#: Of PNGs in a part of several images: one PUT to an object store, and little memory where parts are merged.
PART_BYTES = 8 * 2**20

_FAULT = "is not a complete part"
_FIX = "delete that file and run the same command again: its images are condensed again"

Finished = tuple[ImageRecord, Sequence[TileRow]]
"""A finished image with its rows, possibly none."""


@dataclass(frozen=True)
class Part:
    """Finished images by id, and their rows as a table of `ROW_SCHEMA`; both sorted by id."""

    records: dict[str, ImageRecord]
    table: pa.Table

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Image ids, each with its rows, which may be none."""
        start = 0
        for image_id, record in self.records.items():
            yield image_id, self.table.slice(start, record.tiles)
            start += record.tiles


def commit_images(storage: StorageFolder, digest: str, shard_count: int, images: Sequence[Finished]) -> None:
    """Commit images, in one part for each of their shards, or in several if they are large."""
    pending: list[Finished] = []
    size = 0
    for image in sorted(images, key=_image_id):
        own = sum(len(row.lr or b"") + len(row.hr or b"") for row in image[1])
        shards = {shard_of(_image_id(each), shard_count) for each in (*pending[:1], image)}
        if pending and (len(shards) > 1 or size + own > PART_BYTES):
            commit_part(storage, digest, pending)
            pending, size = [], 0
        pending, size = [*pending, image], size + own
    if pending:
        commit_part(storage, digest, pending)


def commit_part(storage: StorageFolder, digest: str, images: Sequence[Finished]) -> None:
    """Commit images, all or none. Repeating it is harmless.

    Args:
        storage: the output.
        digest: the run's digest.
        images: at least one, all of one shard.

    Raises:
        ValueError: rows do not belong to their record, or are not numbered 0, 1, …
        IdcError: the disk is full.
    """
    images = sorted(images, key=_image_id)
    for record, rows in images:
        _check_rows(record, rows, digest)
    records = json.dumps([asdict(record) for record, _ in images], allow_nan=False).encode()
    table = table_from_rows([row for _, rows in images for row in rows])
    sink = pa.BufferOutputStream()
    with open_writer(sink, ROW_SCHEMA.with_metadata({**ROW_SCHEMA.metadata, _RECORDS: records})) as writer:
        if table.num_rows:
            writer.write_table(table.replace_schema_metadata(writer.schema.metadata))
    storage.write(part_name(digest, [record.image_id for record, _ in images]), sink.getvalue())


def read_part(storage: StorageFolder, name: str) -> Part:
    """The images of a part.

    Raises:
        FileNotFoundError: there is no such part.
        IdcError: it cannot be read, or holds other images than its name says.
    """
    data = storage.read(name)  # whole: by columns it would be a request for each of them
    if data is None:
        raise FileNotFoundError(storage.shown(name))
    with storage.parsing(name, _FAULT, _FIX):
        parquet = pq.ParquetFile(pa.BufferReader(data))
        records = _records(parquet.metadata, name)
        table = parquet.read().replace_schema_metadata(ROW_SCHEMA.metadata)
        expected = [image_id for image_id, record in records.items() for _ in range(record.tiles)]
        if table.schema != ROW_SCHEMA or table["image_id"].to_pylist() != expected:
            raise ValueError(f"its {table.num_rows} rows are not the tiles of its images in order")
    return Part(records, table)


def read_records(storage: StorageFolder, name: str) -> dict[str, ImageRecord]:
    """The records of a part by image id, from its footer alone; errors as `read_part`."""
    with storage.parsing(name, _FAULT, _FIX), storage.open(name) as file:
        return _records(pq.read_metadata(file), name)


def list_parts(storage: StorageFolder, digest: str, prefixes: Iterable[str] | None = None) -> list[str]:
    """Names of all parts, sorted; up to 256 listings in threads, no file is opened.

    Args:
        storage: the output.
        digest: the run's digest.
        prefixes: list only parts whose first image's id starts with these two hex digits; None: all.
    """
    wanted = None if prefixes is None else set(prefixes)
    if wanted is None or len(wanted) > 1:  # most prefixes have no folder, once shards are compacted
        there = set(storage.folders(part_folder(digest)))
        wanted = there if wanted is None else wanted & there
    folders = [part_folder(digest, prefix) for prefix in sorted(wanted)]
    listings = zip(folders, ordered_map(storage.files, folders), strict=True)
    return [f"{folder}/{name}" for folder, names in listings for name in names if part_contents(name) is not None]


def part_records(storage: StorageFolder, names: Iterable[str]) -> dict[str, dict[str, ImageRecord]]:
    """The records of some parts by name, without parts that have been compacted meanwhile; one footer for each.

    Raises:
        IdcError: a part is damaged.
    """

    def read(name: str) -> tuple[str, dict[str, ImageRecord]]:
        try:
            return name, read_records(storage, name)
        except FileNotFoundError:
            return name, {}

    return {name: records for name, records in ordered_map(read, names) if records}


def _image_id(image: Finished) -> str:
    return image[0].image_id


def _check_rows(record: ImageRecord, rows: Sequence[TileRow], digest: str) -> None:
    indices = [row.tile_index for row in rows]
    if indices != list(range(record.tiles)):
        raise ValueError(f"{record.source}: tile indices are {indices}; expected 0 to {record.tiles - 1} in order")
    for row in rows:
        if row.image_id != record.image_id or row.config_digest != digest:
            raise ValueError(
                f"{record.source}: a row has image_id {row.image_id}, digest {row.config_digest}; "
                f"expected {record.image_id}, {digest}"
            )


def _records(metadata: pq.FileMetaData, name: str) -> dict[str, ImageRecord]:
    found = metadata.metadata or {}
    values = json.loads(found[_RECORDS]) if _RECORDS in found else [json.loads(found[_RECORD])]
    records = [ImageRecord(**value) for value in values]
    ids = [record.image_id for record in records]
    if (ids[0], len(ids)) != part_contents(name) or ids != sorted(set(ids)):
        raise ValueError(f"it holds the images {', '.join(ids[:3])}, which do not match its name")
    return {record.image_id: record for record in records}
