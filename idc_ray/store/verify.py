"""Checks all of an output against what it states of itself, and takes out what is damaged.

A shard and its index are one unit: their checksums cover whole files, so nothing in a damaged one can be trusted. A
repair keeps a copy of what it takes out in ``damaged/``, deletes the shard, then its index, then its pending note, and
``manifest.json`` last, once for all units. Killed in between, it is repeated: the manifest, which has the checksums of
all files, is still there, and a job that continues meanwhile refuses an index without its shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from idc_ray.errors import BadRequest, IdcError, Locked
from idc_ray.objects import StoreUnavailable
from idc_ray.store import atomic, owned
from idc_ray.store.damage import Fault, Report
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.holder import holder_text, read_holder
from idc_ray.store.index import (
    IndexEntry,
    ShardInfo,
    list_index,
    list_pending,
    list_shards,
    read_index,
    read_pending,
    verify_shard,
)
from idc_ray.store.layout import (
    FIX_DAMAGE,
    MANIFEST,
    PARTS,
    RUN,
    SHARDS,
    damaged_name,
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
from idc_ray.store.lock import lock
from idc_ray.store.manifest import Manifest, read_manifest
from idc_ray.store.parts import list_parts, read_part, read_records
from idc_ray.store.png import check_png
from idc_ray.store.quarantine import quarantined_ids, read_quarantined
from idc_ray.store.run_record import LostRun, RunRecord, read_lost, read_run, write_lost
from idc_ray.store.schema import ROW_SCHEMA, check_types
from idc_ray.store.sealed import is_as_written, unsealed
from idc_ray.store.shards import Fingerprint, fingerprint_of, read_shard
from idc_ray.store.threads import ordered_map

_THREADS = 4  # each holds a row group
_ROUNDS = 3  # a damaged pending note hides what is wrong with its shard until it is gone

_Record = TypeVar("_Record")


def verify(uri: str, repair: bool = False, deep: bool = False) -> Report:
    """Check all of an output.

    The manifest against its own checksum and sums, every shard and index against their checksums, ids and tiles of
    images, parts, failed images' records, ``run.json``. Reads every shard once; writes nothing without ``repair``.

    Args:
        uri: the output, local or in an object store.
        repair: take out what is damaged, so that the same condense command does exactly those images again. Sound
            shards and parts stay. May be repeated after a kill.
        deep: also check every PNG to its last byte, and its size.

    Raises:
        BadRequest: there is no output, it is of another version, or an ``--overwrite`` of it was interrupted.
        Locked: a job works on it.
    """
    return verify_output(resolve(uri), repair, deep)


def verify_output(storage: StorageFolder, repair: bool = False, deep: bool = False) -> Report:
    """See :func:`verify`."""
    if storage.size(RUN) is None and not owned.has_data(storage):
        raise BadRequest(f"there is no condensed set at {storage.uri}; give the output of a condense command")
    if not repair:
        holder = read_holder(storage)
        if holder.state == "held":
            raise Locked(f"{storage.uri} is in use by {holder.name}; check it when that process has ended")
        return _examined(storage, deep)[0]
    with lock(storage, holder_text()):
        report, run = _examined(storage, deep)
        faults = list(report.faults)
        for _ in range(_ROUNDS):
            if report.sound:
                break
            _take_out_all(storage, report.faults, run)
            report, run = _examined(storage, deep)
            faults += [fault for fault in report.faults if fault not in faults]
        return replace(report, faults=tuple(faults))


# What is wrong


class _Damage(IdcError):
    """Damage that this module found; the text has no advice and no name."""


@dataclass(frozen=True)
class _Expected:
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
class _Unit:
    """Result of checking a shard and its index."""

    fault: Fault | None
    images: int = 0
    rows: int = 0
    source_bytes: int = 0


def _examined(storage: StorageFolder, deep: bool) -> tuple[Report, LostRun | None]:
    """The report, and what is known of the run even if its record is damaged."""
    faults: list[Fault] = []
    manifest = _read(storage, MANIFEST, _manifest, faults)
    run = _read(storage, RUN, _run, faults)
    known = _known(storage, run, manifest)
    if known is None:
        unrepairable = tuple(replace(fault, take_out=()) for fault in faults)
        return Report(storage.uri, False, False, 0, 0, 0, unrepairable, unrepairable, ()), None
    expected = _Expected(
        storage=storage,
        digest=known.digest,
        shard_count=known.shard_count,
        sides=_sides(run) if deep and run is not None else None,
        manifest=manifest,
        stated={info.shard: info for info in manifest.shards} if manifest is not None else {},
        indexes=manifest.index_fingerprints if manifest is not None else {},
        parts=list_parts(storage, known.digest),
    )
    shards = sorted({*list_shards(storage), *list_pending(storage), *expected.stated})
    units = list(ordered_map(partial(_unit, expected), shards, _THREADS))
    faults += [unit.fault for unit in units if unit.fault is not None]
    for more in (_manifest_faults(expected, units), _part_faults(expected), _quarantine_faults(expected)):
        faults += more
    faults += _stray_files(expected)
    report = Report(
        output=storage.uri,
        finished=manifest is not None,
        deep=expected.sides is not None,
        shards=len(shards),
        images=sum(unit.images for unit in units),
        rows=sum(unit.rows for unit in units),
        faults=tuple(faults),
        left=tuple(faults),
        notes=tuple(_notes(expected)),
    )
    return report, known


def _read(
    storage: StorageFolder, name: str, read: Callable[[StorageFolder], _Record | None], faults: list[Fault]
) -> _Record | None:
    """A record of the output; None, and one fault more, if it is damaged."""
    try:
        return read(storage)
    except (BadRequest, StoreUnavailable):  # no damage
        raise
    except IdcError as error:
        faults.append(Fault(name, _what(storage, name, error), take_out=(name,)))
        return None


def _manifest(storage: StorageFolder) -> Manifest | None:
    manifest = read_manifest(storage)
    if manifest is not None:
        _check_spaces(storage, MANIFEST)
    return manifest


def _run(storage: StorageFolder) -> RunRecord | None:
    """The record; None where a repair took it out."""
    value = storage.read_json(RUN, FIX_DAMAGE)
    if value is None:
        raise _Damage("it is missing")
    unsealed(value, storage.shown(RUN), FIX_DAMAGE)  # first: a damaged version number is no other version
    _check_spaces(storage, RUN)
    if read_lost(storage) is not None:
        return None
    run = read_run(storage)
    if run is None:
        raise BadRequest(f"an --overwrite of {storage.uri} was interrupted; run the same command again")
    return run


def _check_spaces(storage: StorageFolder, name: str) -> None:
    """Damage that changes no value."""
    if not is_as_written(storage, name):
        raise _Damage("its text was changed")


def _known(storage: StorageFolder, run: RunRecord | None, manifest: Manifest | None) -> LostRun | None:
    """Digest and number of shards, from what is sound; None if nothing says them."""
    if run is not None:
        return LostRun(run.digest, run.shard_count)
    lost = read_lost(storage)
    if lost is not None:
        return lost
    infos = manifest.shards if manifest is not None else list(_readable_infos(storage))
    if infos:
        said = Counter((info.digest, info.shard_count) for info in infos)
        return LostRun(*said.most_common(1)[0][0])
    digests = [manifest.digest] if manifest is not None else storage.folders(PARTS)
    return LostRun(digests[0], None) if len(digests) == 1 else None


def _readable_infos(storage: StorageFolder) -> Iterator[ShardInfo]:
    """What the indexes that can be read state."""
    for shard in list_index(storage):
        try:
            entry = read_index(storage, shard, [])
        except StoreUnavailable:
            raise
        except IdcError:
            continue
        if entry is not None:
            yield entry.info


def _sides(run: RunRecord) -> dict[str, int] | None:
    try:
        size = run.side("tile_size")
        sides = {"lr": size, "hr": size * run.side("scale")}
        return {name: sides[name] for name in run.stored}
    except IdcError:
        return None


def _unit(expected: _Expected, shard: int) -> _Unit:
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
        what = _what(storage, name, error)
        if name == pending_name(shard):  # the shard follows from its index, or from nothing
            return _Unit(Fault(name, what, take_out=(name,)))
        info = expected.stated.get(shard)
        images = _images(expected, shard, entry)
        files = (shard_name(shard), index_name(shard), pending_name(shard), MANIFEST)
        return _Unit(Fault(name, what + (f" ({info.images} images)" if info is not None else ""), images, files))
    if entry is None:
        return _Unit(None)  # its first compaction was interrupted: its images are parts still
    return _Unit(None, entry.info.images, entry.info.rows, int(pc.sum(entry.table["source_bytes"]).as_py() or 0))


def _checked_index(expected: _Expected, shard: int) -> IndexEntry | None:
    """An index that fits the manifest, the run, and itself; None if there is none."""
    storage, name = expected.storage, index_name(shard)
    info, fingerprint = expected.stated.get(shard), expected.indexes.get(shard)
    if fingerprint is not None:  # before anything of it is parsed
        data = storage.read(name)
        if data is not None and fingerprint_of(data) != fingerprint:
            raise _Damage(f"its checksum differs from that in {MANIFEST}")
    entry = read_index(storage, shard)
    if entry is None:
        return None
    if info not in (None, entry.info):
        raise _Damage(
            f"it states {_differences(entry.info, info)} where {MANIFEST} has {_differences(info, entry.info)}"
        )
    count = expected.shard_count or entry.info.shard_count
    right = replace(entry.info, file=shard_name(shard), shard=shard, shard_count=count, digest=expected.digest)
    if entry.info != right:
        raise _Damage(f"it states {_differences(entry.info, right)}, expected is {_differences(right, entry.info)}")
    ids, tiles = (entry.table[column].to_pylist() for column in ("image_id", "tiles"))
    if not all(is_image_id(i) for i in ids) or ids != sorted(set(ids)) or any(shard_of(i, count) != shard for i in ids):
        raise _Damage("its ids are not in order, duplicated, or of another shard")
    if (len(ids), sum(tiles)) != (entry.info.images, entry.info.rows):
        stated = f"{entry.info.images} with {entry.info.rows}"
        raise _Damage(f"it lists {len(ids)} images with {sum(tiles)} tiles, but states {stated}")
    return entry


def _differences(info: ShardInfo, other: ShardInfo | None) -> str:
    """Fields of one that the other has otherwise."""
    there = {} if other is None else asdict(other)
    return ", ".join(f"{key} {value}" for key, value in asdict(info).items() if there.get(key) != value)


def _checked_shard(
    expected: _Expected, shard: int, entry: IndexEntry | None, pending: list[Fingerprint] | None
) -> Fingerprint | None:
    """A shard's checksum, which its index or its pending note states."""
    storage = expected.storage
    if entry is None and shard in expected.stated and storage.size(shard_name(shard)) is None:
        raise _Damage("it and its index are missing")
    found = verify_shard(storage, shard, None if entry is None else entry.info)
    if pending is not None and (entry is None or entry.info.fingerprint not in pending):
        count = expected.shard_count
        if not (expected.parts if count is None else shard_parts(expected.parts, count).get(shard)):
            raise _Damage("it was being replaced, and the parts of its images are missing")
    return found


def _check_rows(expected: _Expected, shard: int, index: pa.Table) -> None:
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
                _check_pngs(parquet.read_row_group(group, columns=["image_id", "lr", "hr"]), expected.sides)
    except StoreUnavailable:
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _Damage(f"it has the right checksum, but wrong rows: {error}") from error


def _check_pngs(table: pa.Table, sides: dict[str, int] | None) -> None:
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


def _images(expected: _Expected, shard: int, entry: IndexEntry | None) -> tuple[str, ...]:
    """Sources of a damaged unit's images, from its index or its shard, whichever is sound."""
    if entry is not None:
        return tuple(entry.table["source"].to_pylist())
    info = expected.stated.get(shard)
    try:
        table = read_shard(expected.storage, shard, info.fingerprint) if info is not None else None
    except StoreUnavailable:
        raise
    except IdcError:
        table = None
    return () if table is None else tuple(sorted(set(table["source"].to_pylist())))


def _manifest_faults(expected: _Expected, units: list[_Unit]) -> Iterator[Fault]:
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


def _part_faults(expected: _Expected) -> Iterator[Fault]:
    """Parts that cannot be read, that are of another run, or that a finished run left."""
    storage, digest = expected.storage, expected.digest

    def check(name: str) -> Fault | None:
        try:
            part = read_part(storage, name)
            if set(part.table["config_digest"].to_pylist()) - {digest}:
                raise _Damage("it has rows of another run")
            if expected.shard_count and len({shard_of(each, expected.shard_count) for each in part.records}) > 1:
                raise _Damage("it has images of several shards")
            _check_pngs(part.table, expected.sides)
        except StoreUnavailable:
            raise
        except (IdcError, ValueError) as error:
            return Fault(name, _what(storage, name, error), _ids_in(storage, name), (name, MANIFEST))
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


def _quarantine_faults(expected: _Expected) -> Iterator[Fault]:
    """Records of failed images that cannot be read; without them the images are tried again."""
    storage, digest = expected.storage, expected.digest
    for image_id in sorted(quarantined_ids(storage, digest)):
        name = quarantine_name(digest, image_id)
        try:
            read_quarantined(storage, digest, [image_id])
        except StoreUnavailable:
            raise
        except IdcError as error:
            yield Fault(name, _what(storage, name, error), (image_id,), (name, MANIFEST))


def _stray_files(expected: _Expected) -> Iterator[Fault]:
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


def _notes(expected: _Expected) -> Iterator[str]:
    manifest, storage = expected.manifest, expected.storage
    if read_lost(storage) is not None:
        yield f"a repair removed {RUN}; the condense command of this output writes it again"
    if manifest is None:
        yield f"without {MANIFEST} there are no checksums of indexes; parts have none"
    elif len(manifest.indexes) < len(manifest.shards):
        yield f"{MANIFEST} is of an earlier version without checksums of indexes"


def _what(storage: StorageFolder, name: str, error: Exception) -> str:
    """An error's text without the file's name and the advice at its end."""
    text = str(error)
    if isinstance(error, IdcError) and not isinstance(error, _Damage):
        text = text.partition(f"; {FIX_DAMAGE}")[0] if FIX_DAMAGE in text else text.rpartition("; ")[0]
    text = text.removeprefix(f"{storage.shown(name)} ")
    return text if text.startswith("it ") else f"it {text}"


# The repair


def _take_out_all(storage: StorageFolder, faults: Iterable[Fault], run: LostRun | None) -> None:
    """Take out all damaged files, the manifest after all others."""
    names = [name for fault in faults for name in fault.take_out]
    if RUN in names and run is not None:  # first, as the run is inferred from files that may be removed now
        _keep_copy(storage, RUN)
        write_lost(storage, run)
    for name in names:
        if name not in (RUN, MANIFEST):
            _take_out(storage, name)
    if MANIFEST in names:
        _take_out(storage, MANIFEST)
    owned.sweep(storage)


def _take_out(storage: StorageFolder, name: str) -> None:
    if not atomic.is_temporary(name.rpartition("/")[2]):
        _keep_copy(storage, name)
    storage.delete(name)
    storage.sync(name.rpartition("/")[0])  # a shard that comes back after a power cut would have no index


def _keep_copy(storage: StorageFolder, name: str) -> None:
    data = storage.read(name)
    if data is not None:
        storage.write(damaged_name(name), data)
