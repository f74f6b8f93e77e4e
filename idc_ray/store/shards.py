"""Shards: rows in order, in row groups whose borders depend on the rows only."""

from __future__ import annotations

import hashlib
import heapq
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import FIX_DAMAGE, MANIFEST, shard_name
from idc_ray.store.schema import ROW_SCHEMA, check_types, open_writer

ROW_GROUP_ROWS = 256  # a reader that streams holds a few MB
ROW_GROUP_BYTES = 16 * 2**20  # the same for very large tiles; keeps a column far from Arrow's 2 GB limit


@dataclass(frozen=True)
class Fingerprint:
    """Size and hex sha256 of a file's content."""

    bytes: int
    sha256: str


def fingerprint_of(data: bytes) -> Fingerprint:
    """Size and checksum of a file that is in memory."""
    return Fingerprint(len(data), hashlib.sha256(data).hexdigest())


def shard_bytes(tables: Iterable[pa.Table]) -> bytes:
    """The Parquet file of all rows of ``tables``, in their order.

    However the rows are cut into tables, the bytes are the same. Holds the file and one row group in memory.
    """
    sink = io.BytesIO()  # grows by an eighth, where Arrow's own buffer doubles and copies
    with open_writer(sink, ROW_SCHEMA) as writer:
        for group in _row_groups(tables):
            writer.write_table(group, row_group_size=max(1, group.num_rows))
    return sink.getvalue()  # CPython shares the memory


def read_shard(storage: StorageFolder, shard: int, expected: Fingerprint | None = None) -> pa.Table:
    """The rows of a shard, as a table of `ROW_SCHEMA`.

    Args:
        storage: the output.
        shard: its number.
        expected: what the manifest states of the file; None: whatever it is.

    Raises:
        FileNotFoundError: there is none, and nothing is expected.
        IdcError: it cannot be read, has other columns, or is not what is expected.
    """
    name = shard_name(shard)
    with storage.parsing(name, "cannot be read as a shard", FIX_DAMAGE):
        if expected is None:
            with storage.open(name) as file:
                table = pq.ParquetFile(file, pre_buffer=True).read()
        else:
            table = pq.ParquetFile(pa.BufferReader(_checked(storage, name, expected))).read()
        check_types(table.schema, ROW_SCHEMA)
        return table.select(ROW_SCHEMA.names).replace_schema_metadata(ROW_SCHEMA.metadata)


def _checked(storage: StorageFolder, name: str, expected: Fingerprint) -> bytes:
    data = storage.read(name)
    if data is None:
        raise IdcError(f"{storage.shown(name)} is missing, but {storage.shown(MANIFEST)} lists it; {FIX_DAMAGE}")
    found = fingerprint_of(data)
    if found != expected:
        raise IdcError(
            f"{storage.shown(name)} is damaged: {found.bytes:,} bytes, sha256 {found.sha256}; "
            f"{storage.shown(MANIFEST)} states {expected.bytes:,} bytes, sha256 {expected.sha256}; {FIX_DAMAGE}"
        )
    return data


def check_footer(storage: StorageFolder, shard: int, rows: int | None) -> None:
    """Read the footer of a shard alone.

    Raises:
        IdcError: it is damaged, or states another number of ``rows``; None: any number will do.
    """
    name = shard_name(shard)
    with storage.parsing(name, "has no complete footer", FIX_DAMAGE), storage.open(name) as file:
        found = pq.read_metadata(file).num_rows
    if rows is not None and found != rows:
        raise IdcError(f"{storage.shown(name)} has {found} rows, but {rows} in its index; {FIX_DAMAGE}")


def merge(shard: pq.ParquetFile | None, images: Iterable[tuple[str, pa.Table]]) -> Iterator[pa.Table]:
    """The rows of a shard and of further images, sorted by image id and tile index.

    Args:
        shard: the shard as it is, None if there is none.
        images: id and rows of each further image, sorted; they replace its rows in the shard, also by none.
    """
    old = ((image_id, True, table) for image_id, table in (_images(shard) if shard is not None else ()))
    new = ((image_id, False, table) for image_id, table in images)
    replaced = None
    for image_id, is_old, table in heapq.merge(new, old, key=lambda each: each[:2]):
        if not is_old:
            replaced = image_id
        if table.num_rows and not (is_old and image_id == replaced):
            yield table


def sha256_of_file(file: pa.NativeFile) -> str:
    """Hex sha256 of what is left in a file, read piece by piece."""
    digest = hashlib.sha256()
    while piece := file.read(4 * 2**20):
        digest.update(piece)
    return digest.hexdigest()


def _images(shard: pq.ParquetFile) -> Iterator[tuple[str, pa.Table]]:
    """Runs of rows of one image, in the shard's order; an image on two row groups comes as two runs."""
    check_types(shard.schema_arrow, ROW_SCHEMA)
    for i in range(shard.num_row_groups):
        group = shard.read_row_group(i).replace_schema_metadata(ROW_SCHEMA.metadata)
        ids = group["image_id"].to_pylist()
        start = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or ids[end] != ids[start]:
                yield ids[start], group.slice(start, end - start)
                start = end


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        start = 0
        for i, row_size in enumerate(_png_sizes(table)):
            if rows and (rows == ROW_GROUP_ROWS or size + row_size > ROW_GROUP_BYTES):
                yield _joined([*pending, table.slice(start, i - start)])
                pending, start, rows, size = [], i, 0, 0
            rows, size = rows + 1, size + row_size
        pending.append(table.slice(start))
    if rows:
        yield _joined(pending)


def _png_sizes(table: pa.Table) -> list[int]:
    """Bytes of the PNGs of each row. Not `nbytes`: that depends on how the table came about."""
    lengths = (pc.binary_length(pc.struct_field(table[name], "bytes")) for name in ("lr", "hr"))
    lr, hr = (pc.fill_null(length, 0) for length in lengths)
    return list(pc.add(lr, hr).to_pylist())


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()  # one chunk: pages break where chunks do
