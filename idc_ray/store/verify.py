"""Checks all of an output against what it states of itself, and takes out what is damaged.

A shard and its index are one unit: their checksums cover whole files, so nothing in a damaged one can be trusted. A
repair keeps a copy of what it takes out in ``damaged/``, deletes the shard, then its index, then its pending note, and
``manifest.json`` last, once for all units. Killed in between, it is repeated: the manifest, which has the checksums of
all files, is still there, and a job that continues meanwhile refuses an index without its shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

from idc_ray.errors import BadRequest, IdcError, Locked
from idc_ray.store import atomic, owned
from idc_ray.store.checks import (
    Damage,
    Expected,
    check_unit,
    description,
    manifest_faults,
    notes_on,
    part_faults,
    quarantine_faults,
    readable,
    stray_files,
)
from idc_ray.store.damage import Fault, Report
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.holder import holder_text, read_holder
from idc_ray.store.index import IndexEntry, ShardInfo, list_index, list_pending, list_shards, read_index
from idc_ray.store.layout import FIX_DAMAGE, MANIFEST, PARTS, RUN, damaged_name
from idc_ray.store.lock import lock
from idc_ray.store.manifest import Manifest, read_manifest
from idc_ray.store.parts import list_parts
from idc_ray.store.run_record import LostRun, RunRecord, read_lost, read_run, write_lost
from idc_ray.store.sealed import is_as_written, unsealed
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


def _examined(storage: StorageFolder, deep: bool) -> tuple[Report, LostRun | None]:
    """The report, and what is known of the run even if its record is damaged."""
    faults: list[Fault] = []
    manifest = _read(storage, MANIFEST, _manifest, faults)
    run = _read(storage, RUN, _run, faults)
    known = _known(storage, run, manifest)
    if known is None:
        unrepairable = tuple(replace(fault, take_out=()) for fault in faults)
        return Report(storage.uri, False, False, 0, 0, 0, unrepairable, unrepairable, ()), None
    expected = Expected(
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
    units = list(ordered_map(partial(check_unit, expected), shards, _THREADS))
    faults += [unit.fault for unit in units if unit.fault is not None]
    for more in (manifest_faults(expected, units), part_faults(expected), quarantine_faults(expected)):
        faults += more
    faults += stray_files(expected)
    report = Report(
        output=storage.uri,
        finished=manifest is not None,
        deep=expected.sides is not None,
        shards=len(shards),
        images=sum(unit.images for unit in units),
        rows=sum(unit.rows for unit in units),
        faults=tuple(faults),
        left=tuple(faults),
        notes=tuple(notes_on(expected)),
    )
    return report, known


def _read(
    storage: StorageFolder, name: str, read: Callable[[StorageFolder], _Record | None], faults: list[Fault]
) -> _Record | None:
    """A record of the output; None, and one fault more, if it is damaged."""
    found = readable(lambda: read(storage))
    if isinstance(found, BadRequest):  # no damage
        raise found
    if isinstance(found, IdcError):
        faults.append(Fault(name, description(storage, name, found), take_out=(name,)))
        return None
    return found


def _manifest(storage: StorageFolder) -> Manifest | None:
    manifest = read_manifest(storage)
    if manifest is not None:
        _check_spaces(storage, MANIFEST)
    return manifest


def _run(storage: StorageFolder) -> RunRecord | None:
    """The record; None where a repair took it out."""
    value = storage.read_json(RUN, FIX_DAMAGE)
    if value is None:
        raise Damage("it is missing")
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
        raise Damage("its text was changed")


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
        entry = readable(partial(read_index, storage, shard, []))
        if isinstance(entry, IndexEntry):
            yield entry.info


def _sides(run: RunRecord) -> dict[str, int] | None:
    try:
        size = run.side("tile_size")
        sides = {"lr": size, "hr": size * run.side("scale")}
        return {name: sides[name] for name in run.stored}
    except IdcError:
        return None


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
