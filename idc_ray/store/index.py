"""The index of a shard: one row per finished image, and the checksum of the shard it belongs to.

A shard is replaced in the order pending note, shard, index, parts deleted, note deleted. The note lists the checksums
that the shard may have until the index is written, which distinguishes a shard that a killed process was replacing from
a damaged one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import FIX_DAMAGE, INDEX, SHARDS, index_name, pending_name, shard_name, shard_number
from idc_ray.store.records import INDEX_SCHEMA, ImageRecord, table_from_records
from idc_ray.store.schema import check_types
from idc_ray.store.shards import Fingerprint, fingerprint_of, sha256_of_file
from idc_ray.store.threads import ordered_map
from idc_ray.store.typed_json import from_json

_SHARD = b"idc_ray.shard"
_YOUNGER = ("color_profile", "degradation")  # columns that indexes of version 0.1 lack


@dataclass(frozen=True)
class ShardInfo:
    """A shard, as its index and the manifest describe it.

    Args:
        file: name below the output.
        shard: its number.
        shard_count: of how many.
        digest: the run's digest.
        images: finished images in its range, also those without tiles.
        rows: tiles.
        bytes: size of the file.
        sha256: of the file's content, hex.
    """

    file: str
    shard: int
    shard_count: int
    digest: str
    images: int
    rows: int
    bytes: int
    sha256: str

    @property
    def fingerprint(self) -> Fingerprint:
        """Size and checksum of the file."""
        return Fingerprint(self.bytes, self.sha256)


@dataclass(frozen=True)
class IndexEntry:
    """A shard and its images, as a table of `INDEX_SCHEMA` sorted by image id, or some columns of it.

    ``fingerprint`` is the index file's own.
    """

    info: ShardInfo
    table: pa.Table
    fingerprint: Fingerprint


def write_index(storage: StorageFolder, info: ShardInfo, records: Iterable[ImageRecord]) -> None:
    """Write the index of a shard."""
    table = table_from_records(records).replace_schema_metadata({_SHARD: json.dumps(asdict(info)).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy")
    storage.write(index_name(info.shard), sink.getvalue())


def read_index(storage: StorageFolder, shard: int, columns: Sequence[str] | None = None) -> IndexEntry | None:
    """The index of a shard, None if there is none.

    Raises:
        IdcError: it cannot be read.
    """
    data = storage.read(index_name(shard))  # whole: by columns it would be a request for each of them
    if data is None:
        return None
    with storage.parsing(index_name(shard), "is not a complete index", FIX_DAMAGE):
        parquet = pq.ParquetFile(pa.BufferReader(data))
        info = from_json(ShardInfo, json.loads((parquet.metadata.metadata or {})[_SHARD]))
        table = parquet.read(columns=list(columns) if columns is not None else None)
        for name in _YOUNGER:
            if name not in parquet.schema_arrow.names and (columns is None or name in columns):
                table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
        check_types(table.schema, INDEX_SCHEMA)
    if columns is None and table.schema != INDEX_SCHEMA:
        raise IdcError(f"{storage.shown(index_name(shard))} has other columns than this version writes; {FIX_DAMAGE}")
    return IndexEntry(info, table.replace_schema_metadata(None), fingerprint_of(data))


def list_index(storage: StorageFolder) -> list[int]:
    """The numbers of the shards that have an index, in order."""
    return _numbers(storage.files(INDEX))


def list_shards(storage: StorageFolder) -> list[int]:
    """The numbers of the shards that are there, or have an index, in order."""
    return sorted({*_numbers(storage.files(SHARDS)), *list_index(storage)})


def write_pending(storage: StorageFolder, shard: int, allowed: Iterable[Fingerprint]) -> None:
    """Record the fingerprints that a shard may have while it is replaced."""
    storage.write_json(pending_name(shard), {"shard_may_be": [asdict(fingerprint) for fingerprint in allowed]})


def read_pending(storage: StorageFolder, shard: int) -> list[Fingerprint] | None:
    """The fingerprints that a shard may have while it is replaced; None if it is not being replaced."""
    value = storage.read_json(pending_name(shard), FIX_DAMAGE)
    if value is None:
        return None
    with storage.parsing(pending_name(shard), "is not a pending note", FIX_DAMAGE):
        return [from_json(Fingerprint, item) for item in value["shard_may_be"]]


def list_pending(storage: StorageFolder) -> list[int]:
    """The numbers of the shards whose replacement was interrupted, in order."""
    suffix = ".pending.json"
    return _numbers([f"{name.removesuffix(suffix)}.parquet" for name in storage.files(INDEX) if name.endswith(suffix)])


def verify_shard(storage: StorageFolder, shard: int, info: ShardInfo | None, full: bool = True) -> Fingerprint | None:
    """Check a shard against its index and its pending note.

    Args:
        storage: the output.
        shard: its number.
        info: what its index says; None if it has none.
        full: compare checksums; else only sizes.

    Returns:
        Size and checksum of the shard, None if there is none. Not ``full``, the checksum is the expected one.

    Raises:
        IdcError: the shard is missing, damaged, or nothing says what it should be.
    """
    name = shard_name(shard)
    size = storage.size(name)
    allowed = ([info.fingerprint] if info else []) + (read_pending(storage, shard) or [])
    if size is None:
        if info is not None:
            raise IdcError(
                f"{storage.shown(name)} is missing, but {storage.shown(index_name(shard))} lists it; {FIX_DAMAGE}"
            )
        return None
    if not allowed:
        raise IdcError(f"{storage.shown(name)} has no entry {storage.shown(index_name(shard))}; {FIX_DAMAGE}")
    fitting = [fingerprint for fingerprint in allowed if fingerprint.bytes == size]
    if full and fitting:
        with storage.open(name) as file:
            found = Fingerprint(size, sha256_of_file(file))
        fitting = [fingerprint for fingerprint in fitting if fingerprint == found]
    if not fitting:
        expected = " or ".join(f"{fingerprint.bytes:,} bytes, sha256 {fingerprint.sha256}" for fingerprint in allowed)
        what = "another checksum" if full and size in {fingerprint.bytes for fingerprint in allowed} else "another size"
        raise IdcError(
            f"{storage.shown(name)} is damaged: {size:,} bytes, {what} than its index entry states ({expected}); "
            f"{FIX_DAMAGE}"
        )
    return fitting[0]


def check_shards(storage: StorageFolder, full: bool = True) -> list[ShardInfo]:
    """Check all shards and their indexes against each other, in threads; returns them in order.

    Raises:
        IdcError: one or more are damaged or missing; the message names the first ones.
    """

    def check(shard: int) -> ShardInfo | IdcError | None:
        try:
            entry = read_index(storage, shard, columns=[])
            verify_shard(storage, shard, entry.info if entry else None, full)
        except IdcError as error:
            return error
        return entry.info if entry else None

    results = list(ordered_map(check, list_shards(storage)))
    faults = [result for result in results if isinstance(result, IdcError)]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise IdcError("\n".join(str(fault) for fault in faults[:3]) + more)
    return [result for result in results if isinstance(result, ShardInfo)]


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted(number for name in names if (number := shard_number(name)) is not None)
