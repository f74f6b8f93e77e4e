"""What is checked of an output: each of its files against what the others state of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from idc_ray.errors import IdcError
from idc_ray.object_stores import StoreUnavailable
from idc_ray.store import owned
from idc_ray.store.damage import Fault
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import IndexEntry, ShardInfo, list_shards, read_index, read_pending, verify_shard
from idc_ray.store.layout import (
    FIX_DAMAGE,
    MANIFEST,
    PARTS,
    RUN,
    SHARDS,
    index_name,
    is_image_id,
    part_contents,
    part_folder,
    pending_name,
    quarantine_name,
    shard_name,
    shard_number,
    shard_of,
    shard_parts,
)
from idc_ray.store.manifest import Manifest
from idc_ray.store.parts import read_part, read_records
from idc_ray.store.png import check_png
from idc_ray.store.quarantine import quarantined_ids, read_quarantined
from idc_ray.store.run_record import read_lost
from idc_ray.store.schema import ROW_SCHEMA, check_types
from idc_ray.store.shards import Fingerprint, fingerprint_of, read_shard
from idc_ray.store.threads import ordered_map

T = TypeVar("T")


class Damage(IdcError):
    """Damage that a check found; the text has no advice and no name."""


def readable(read: Callable[[], T]) -> T | IdcError:
    """What is read, or why it cannot be. A store that does not answer is no damage."""
    try:
        return read()
    except StoreUnavailable:
        raise
    except IdcError as error:
        return error


@dataclass(frozen=True)
class Expected:
    """What the files of an output are checked against.

    Args:
        storage: the output.
        digest: of its run.
        shard_count: of its run; None if nothing sound says it.
        sides: of the tiles that are stored in pixels, by column, to check PNGs; None: PNGs are not checked.
        manifest: None if there is none, or a damaged one.
        stated: what the manifest states of each shard, by its number.
        indexes: what it states of their indexes, which earlier versions did not state.
        parts: their names.
    """

    storage: StorageFolder
    digest: str
    shard_count: int | None
    sides: dict[str, int] | None
    manifest: Manifest | None
    stated: dict[int, ShardInfo]
    indexes: dict[int, Fingerprint]
    parts: list[str]


@dataclass(frozen=True)
class Unit:
    """Result of checking a shard and its index."""

    fault: Fault | None
    images: int = 0
    rows: int = 0
    source_bytes: int = 0


def check_unit(expected: Expected, shard: int) -> Unit:
    """Checks a shard, its index and its pending note against each other and the manifest."""
    storage, name = expected.storage, pending_name(shard)
    entry = None
    try:
        pending = read_pending(storage, shard)
        name = index_name(shard)
        entry = _checked_index(expected, shard)
        name = shard_name(shard)
        found = _checked_shard(expected, shard, entry, pending)
        if entry is not None and found == entry.info.fingerprint:
            _check_rows(expected, shard, entry.table)
    except StoreUnavailable:
        raise
    except IdcError as error:
        what = description(storage, name, error)
        if name == pending_name(shard):  # the shard follows from its index, or from nothing
            return Unit(Fault(name, what, take_out=(name,)))
        info = expected.stated.get(shard)
        images = _images(expected, shard, entry)
        files = (shard_name(shard), index_name(shard), pending_name(shard), MANIFEST)
        return Unit(Fault(name, what + (f" ({info.images} images)" if info is not None else ""), images, files))
    if entry is None:
        return Unit(None)  # its first compaction was interrupted: its images are parts still
    return Unit(None, entry.info.images, entry.info.rows, int(pc.sum(entry.table["source_bytes"]).as_py() or 0))


def _checked_index(expected: Expected, shard: int) -> IndexEntry | None:
    """An index that fits the manifest, the run, and itself; None if there is none."""
    storage, name = expected.storage, index_name(shard)
    info, fingerprint = expected.stated.get(shard), expected.indexes.get(shard)
    if fingerprint is not None:  # before anything of it is parsed
        data = storage.read(name)
        if data is not None and fingerprint_of(data) != fingerprint:
            raise Damage(f"its checksum differs from that in {MANIFEST}")
    entry = read_index(storage, shard)
    if entry is None:
        return None
    if info not in (None, entry.info):
        raise Damage(
            f"it states {_differences(entry.info, info)} where {MANIFEST} has {_differences(info, entry.info)}"
        )
    count = expected.shard_count or entry.info.shard_count
    right = replace(entry.info, file=shard_name(shard), shard=shard, shard_count=count, digest=expected.digest)
    if entry.info != right:
        raise Damage(f"it states {_differences(entry.info, right)}, expected is {_differences(right, entry.info)}")
    ids, tiles = (entry.table[column].to_pylist() for column in ("image_id", "tiles"))
    if not all(is_image_id(i) for i in ids) or ids != sorted(set(ids)) or any(shard_of(i, count) != shard for i in ids):
        raise Damage("its ids are not in order, duplicated, or of another shard")
    if (len(ids), sum(tiles)) != (entry.info.images, entry.info.rows):
        stated = f"{entry.info.images} with {entry.info.rows}"
        raise Damage(f"it lists {len(ids)} images with {sum(tiles)} tiles, but states {stated}")
    return entry


def _differences(info: ShardInfo, other: ShardInfo | None) -> str:
    """Fields of one that the other has otherwise."""
    there = {} if other is None else asdict(other)
    return ", ".join(f"{key} {value}" for key, value in asdict(info).items() if there.get(key) != value)


def _checked_shard(
    expected: Expected, shard: int, entry: IndexEntry | None, pending: list[Fingerprint] | None
) -> Fingerprint | None:
    """A shard's checksum, which its index or its pending note states."""
    storage = expected.storage
    if entry is None and shard in expected.stated and storage.size(shard_name(shard)) is None:
        raise Damage("it and its index are missing")
    found = verify_shard(storage, shard, None if entry is None else entry.info)
    if pending is not None and (entry is None or entry.info.fingerprint not in pending):
        count = expected.shard_count
        if not (expected.parts if count is None else shard_parts(expected.parts, count).get(shard)):
            raise Damage("it was being replaced, and the parts of its images are missing")
    return found


def _check_rows(expected: Expected, shard: int, index: pa.Table) -> None:
    """The rows of a shard against its index; their PNGs, if wanted."""
    storage = expected.storage
    ids, tiles, sources = (index[column].to_pylist() for column in ("image_id", "tiles", "source_sha256"))
    wanted = [(i, tile, source) for i, count, source in zip(ids, tiles, sources, strict=True) for tile in range(count)]
    try:
        with storage.open(shard_name(shard)) as file:
            parquet = pq.ParquetFile(file)
            check_types(parquet.schema_arrow, ROW_SCHEMA)
            table = parquet.read(columns=["image_id", "tile_index", "source_sha256", "config_digest"])
            if list(zip(*(column.to_pylist() for column in table.columns[:3]), strict=True)) != wanted:
                raise ValueError("they are not the tiles of the index's images in order")
            if set(table["config_digest"].to_pylist()) - {expected.digest}:
                raise ValueError("some are of another run")
            for group in range(parquet.num_row_groups) if expected.sides is not None else ():
                check_pngs(parquet.read_row_group(group, columns=["image_id", "lr", "hr"]), expected.sides)
    except StoreUnavailable:
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise Damage(f"it has the right checksum, but wrong rows: {error}") from error


def check_pngs(table: pa.Table, sides: dict[str, int] | None) -> None:
    for row in table.to_pylist() if sides is not None else ():
        for name in ("lr", "hr"):
            side = (sides or {}).get(name)
            try:
                if (side is None) != (row[name] is None):
                    raise ValueError("it is not stored" if side else "it is stored, but the run stores none")
                if side is not None:
                    check_png(row[name]["bytes"], side)
            except ValueError as error:
                raise ValueError(f"{name} of image {row['image_id']}: {error}") from error


def _images(expected: Expected, shard: int, entry: IndexEntry | None) -> tuple[str, ...]:
    """Sources of a damaged unit's images, from its index or its shard, whichever is sound."""
    if entry is not None:
        return tuple(entry.table["source"].to_pylist())
    info = expected.stated.get(shard)
    table = None if info is None else readable(lambda: read_shard(expected.storage, shard, info.fingerprint))
    return tuple(sorted(set(table["source"].to_pylist()))) if isinstance(table, pa.Table) else ()


def manifest_faults(expected: Expected, units: list[Unit]) -> Iterator[Fault]:
    """The manifest against the run, its own sums and, if they are sound, those of the indexes."""
    manifest = expected.manifest
    if manifest is None:
        return
    infos = manifest.shards
    numbers = [info.shard for info in infos]
    wrong = [
        name
        for name in ("images", "rows", "bytes")
        if getattr(manifest, name) != sum(getattr(info, name) for info in infos)
    ]
    if {manifest.digest, *(info.digest for info in infos)} != {expected.digest}:
        wrong.append("digest")
    if numbers != sorted(set(numbers)) or len(manifest.indexes) not in (0, len(infos)):
        wrong.append("shards")
    if not set(list_shards(expected.storage)) <= set(numbers):
        wrong.append("number of shards")
    whole = not wrong and all(unit.fault is None for unit in units)
    if whole and manifest.source_bytes != sum(unit.source_bytes for unit in units):
        wrong.append("source_bytes")
    if wrong:
        yield Fault(MANIFEST, f"its {', '.join(wrong)} are not those of the shards", take_out=(MANIFEST,))


def part_faults(expected: Expected) -> Iterator[Fault]:
    """Parts that cannot be read, that are of another run, or that a finished run left."""
    storage, digest = expected.storage, expected.digest

    def check(name: str) -> Fault | None:
        try:
            part = read_part(storage, name)
            if set(part.table["config_digest"].to_pylist()) - {digest}:
                raise Damage("it has rows of another run")
            if expected.shard_count and len({shard_of(each, expected.shard_count) for each in part.records}) > 1:
                raise Damage("it has images of several shards")
            check_pngs(part.table, expected.sides)
        except StoreUnavailable:
            raise
        except (IdcError, ValueError) as error:
            return Fault(name, description(storage, name, error), _ids_in(storage, name), (name, MANIFEST))
        return None

    yield from (fault for fault in ordered_map(check, expected.parts) if fault is not None)
    if expected.manifest is not None and expected.parts:
        what = f"{len(expected.parts)} parts are not in shards yet; the same condense command continues"
        yield Fault(part_folder(digest), what, take_out=(MANIFEST,))
    for other in storage.folders(PARTS):
        folders = [f"{PARTS}/{other}/{prefix}" for prefix in storage.folders(f"{PARTS}/{other}")]
        names = tuple(f"{folder}/{name}" for folder in folders for name in storage.files(folder) if part_contents(name))
        if other != digest and names:
            yield Fault(f"{PARTS}/{other}", f"{len(names)} parts of another run are left", take_out=names)


def _ids_in(storage: StorageFolder, name: str) -> tuple[str, ...]:
    """Ids of the images of a part; of a damaged one at least the first."""
    try:
        return tuple(read_records(storage, name))
    except IdcError:
        return (part_contents(name) or ("", 0))[:1]


def quarantine_faults(expected: Expected) -> Iterator[Fault]:
    """Records of failed images that cannot be read; without them the images are tried again."""
    storage, digest = expected.storage, expected.digest
    for image_id in sorted(quarantined_ids(storage, digest)):
        name = quarantine_name(digest, image_id)
        found = readable(partial(read_quarantined, storage, digest, [image_id]))
        if isinstance(found, IdcError):
            yield Fault(name, description(storage, name, found), (image_id,), (name, MANIFEST))


def stray_files(expected: Expected) -> Iterator[Fault]:
    """Files that readers of ``shards/*.parquet`` take for its shards; of a finished run, what dead writers left."""
    storage = expected.storage
    for name in storage.files(SHARDS):
        if name.endswith(".parquet") and shard_number(name) is None:
            yield Fault(
                f"{SHARDS}/{name}", f"it is not a shard, but readers of {SHARDS}/*.parquet find it; move it elsewhere"
            )
    if expected.manifest is not None:
        for name in owned.abandoned(storage):
            yield Fault(name, "a killed writer left it", take_out=(name,))


def notes_on(expected: Expected) -> Iterator[str]:
    manifest, storage = expected.manifest, expected.storage
    if read_lost(storage) is not None:
        yield f"a repair removed {RUN}; the condense command of this output writes it again"
    if manifest is None:
        yield f"without {MANIFEST} there are no checksums of indexes; parts have none"
    elif len(manifest.indexes) < len(manifest.shards):
        yield f"{MANIFEST} is of an earlier version without checksums of indexes"


def description(storage: StorageFolder, name: str, error: Exception) -> str:
    """An error's text without the file's name and the advice at its end."""
    text = str(error)
    if isinstance(error, IdcError) and not isinstance(error, Damage):
        text = text.partition(f"; {FIX_DAMAGE}")[0] if FIX_DAMAGE in text else text.rpartition("; ")[0]
    text = text.removeprefix(f"{storage.shown(name)} ")
    return text if text.startswith("it ") else f"it {text}"
