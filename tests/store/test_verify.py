"""Whatever is damaged is found, and what a repair takes out is exactly what the job does again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import PyFileSystem

from idc_ray.commands.verify import main
from idc_ray.errors import BadRequest, IdcError, Locked
from idc_ray.images import encode_png
from idc_ray.store import lease
from idc_ray.store.checks import check_pngs
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.holder import holder_text
from idc_ray.store.index import check_shards, list_pending, read_index, write_index
from idc_ray.store.layout import index_name, part_name, pending_name, shard_name, shard_of
from idc_ray.store.lock import lock
from idc_ray.store.manifest import read_manifest, write_manifest
from idc_ray.store.parts import commit_part, list_parts
from idc_ray.store.quarantine import quarantine_image, quarantined_ids
from idc_ray.store.records import records_from_table
from idc_ray.store.run_record import begin_run, read_run
from idc_ray.store.sealed import sealed
from idc_ray.store.shards import read_shard, shard_bytes
from idc_ray.store.verify import Report, verify, verify_output
from tests.s3 import S3

SHARDS = 3
SOURCES = [f"{i}.png" for i in range(12)]
SIDE = 4


@pytest.fixture(autouse=True)
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.01)


def png(seed: int, side: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def condense(
    store: StorageFolder, make: SimpleNamespace, sources: Iterable[str] = SOURCES, finish: bool = True
) -> None:
    """What the job does: the images that are not done, then the shards, then the manifest."""
    config = {"scale": 2, "tile_size": SIDE}
    run = begin_run(store, make.run_record(shard_count=SHARDS, config=config))
    done = find_done(store, make.DIGEST)
    for source in sources:
        if make.image_id(source) in done:
            continue
        number = int(source.partition(".")[0])
        tiles = number % 3
        rows = make.rows(source, tiles)
        rows = [dataclasses.replace(row, lr=png(number, SIDE), hr=png(number, 2 * SIDE)) for row in rows]
        commit_part(store, make.DIGEST, [(make.record(source, tiles), rows)])
    if finish:
        for shard in range(SHARDS):
            compact(store, make.DIGEST, shard, run.shard_count)
        write_manifest(store, make.DIGEST, 24, {"wall": 1.0}, len(SOURCES))


@pytest.fixture
def finished(store: StorageFolder, make: SimpleNamespace) -> StorageFolder:
    condense(store, make)
    return store


def in_memory(make: SimpleNamespace, finish: bool = True) -> tuple[StorageFolder, Any]:
    """An output whose changes are counted, and can be made to fail."""
    objects = make.ObjectStore()
    store = StorageFolder(PyFileSystem(objects), "bucket/out", "mock://bucket/out")
    condense(store, make, finish=finish)
    return store, objects


def check(store: StorageFolder, **how: bool) -> Report:
    return verify_output(store, **how)


def contents(store: StorageFolder, folders: Iterable[str] = ("shards",)) -> dict[str, bytes | None]:
    names = [f"{folder}/{name}" for folder in folders for name in store.files(folder)]
    return {name: store.read(name) for name in names}


def change(store: StorageFolder, name: str, edit: Callable[[bytes], bytes]) -> None:
    data = store.read(name)
    assert data is not None
    store.write(name, edit(data))


def edit_json(store: StorageFolder, name: str, edit: Callable[[dict[str, Any]], Any], seal: bool = False) -> None:
    """Edits a record as a text editor would; with its checksum made again if asked for."""
    value = json.loads(store.read(name) or b"")
    edit(value)
    if seal:
        value = sealed({key: entry for key, entry in value.items() if key != "sha256"})
    store.write_json(name, value)


def of_shard(make: SimpleNamespace, *shards: int) -> set[str]:
    return {source for source in SOURCES if shard_of(make.image_id(source), SHARDS) in shards}


FILES = [*(name(shard) for shard in range(SHARDS) for name in (shard_name, index_name)), "manifest.json", "run.json"]


def test_a_sound_output_is_sound_and_is_not_touched(make: SimpleNamespace) -> None:
    store, objects = in_memory(make)
    before = len(objects.changes)
    for deep in (False, True):
        report = check(store, deep=deep)
        assert report.sound and report.finished and not report.faults and not report.notes
        assert (report.shards, report.images, report.rows, report.deep) == (SHARDS, 12, 12, deep)
    assert len(objects.changes) == before
    assert check(store, repair=True).sound
    assert not store.files("damaged") and read_manifest(store) is not None


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found(make: SimpleNamespace, name: str) -> None:
    store, objects = in_memory(make)
    path = f"bucket/out/{name}"
    whole, moment = objects.objects[path], random.Random(name)
    places = range(len(whole)) if name.endswith("json") else moment.sample(range(len(whole)), min(60, len(whole)))
    for at in places:
        flipped = bytearray(whole)
        flipped[at] ^= moment.randrange(1, 256)
        objects.objects[path] = bytes(flipped)
        report = check(store)
        assert [fault.file for fault in report.faults] == [name], (at, flipped[at], report)
    objects.objects[path] = whole
    assert check(store).sound


def damage_table() -> list[Any]:
    """Name of a case, what it does, the file that is named, the shards whose images are done again."""

    def swap(store: StorageFolder) -> None:
        one, two = (store.read(shard_name(shard)) for shard in (0, 2))
        assert one is not None and two is not None and one != two
        store.write(shard_name(0), two)
        store.write(shard_name(2), one)

    def swap_with_indexes(store: StorageFolder) -> None:
        swap(store)
        one, two = (store.read(index_name(shard)) for shard in (0, 2))
        assert one is not None and two is not None
        store.write(index_name(0), two)
        store.write(index_name(2), one)

    def rewrite(store: StorageFolder) -> None:
        """The same rows less one, in a shard that can be read."""
        table = read_shard(store, 1).slice(1)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        store.write(shard_name(1), sink.getvalue())

    def count(where: str, by: int, seal: bool) -> Callable[[StorageFolder], None]:
        def edit(value: dict[str, Any]) -> None:
            (value if where == "manifest" else value["shards"][1])["rows"] += by

        return lambda store: edit_json(store, "manifest.json", edit, seal)

    def drop(store: StorageFolder, *names: str) -> None:
        for name in names:
            store.delete(name)

    return [
        ("truncated shard", lambda s: change(s, shard_name(1), lambda d: d[:-1]), shard_name(1), (1,)),
        ("empty shard", lambda s: change(s, shard_name(1), lambda d: b""), shard_name(1), (1,)),
        ("longer shard", lambda s: change(s, shard_name(1), lambda d: d + b"\0"), shard_name(1), (1,)),
        ("shard of other rows", rewrite, shard_name(1), (1,)),
        ("deleted shard", lambda s: drop(s, shard_name(1)), shard_name(1), (1,)),
        ("truncated index", lambda s: change(s, index_name(1), lambda d: d[:-9]), index_name(1), (1,)),
        ("deleted index", lambda s: drop(s, index_name(1)), shard_name(1), (1,)),
        ("deleted shard and index", lambda s: drop(s, shard_name(1), index_name(1)), shard_name(1), (1,)),
        ("swapped shards", swap, shard_name(0), (0, 2)),
        ("swapped shards and indexes", swap_with_indexes, index_name(0), (0, 2)),
        ("edited row count", count("manifest", 1, False), "manifest.json", ()),
        ("edited row count, sealed", count("manifest", 1, True), "manifest.json", ()),
        ("edited row count of a shard", count("shard", -1, False), "manifest.json", ()),
        ("truncated manifest", lambda s: change(s, "manifest.json", lambda d: d[:-40]), "manifest.json", ()),
        ("empty manifest", lambda s: change(s, "manifest.json", lambda d: b""), "manifest.json", ()),
        ("all at once", lambda s: [swap(s), drop(s, index_name(1)), change(s, "manifest.json", lambda d: b"")],
         "manifest.json", (0, 1, 2)),
    ]  # fmt: skip


CASES = damage_table()


@pytest.mark.parametrize(("damage", "file", "shards"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_damage_is_named_and_fixed_by_repair_and_the_same_job(
    finished: StorageFolder,
    make: SimpleNamespace,
    damage: Callable[[StorageFolder], None],
    file: str,
    shards: tuple[int, ...],
) -> None:
    """Catches rows that are lost, images that are done needlessly, and damage that a repair leaves."""
    expected = contents(finished)
    damage(finished)
    found = check(finished)
    assert not found.sound and found.faults[0].file == file
    assert check(finished) == found
    report = check(finished, repair=True)
    assert report.sound and not report.finished and report.faults == found.faults
    assert check(finished).sound
    known = of_shard(make, *shards)
    assert set(report.redo) <= known and set(report.redo) <= {*SOURCES}
    done = find_done(finished, make.DIGEST)
    assert set(done) == {make.image_id(source) for source in SOURCES if source not in known}
    condense(finished, make)
    assert contents(finished) == expected
    assert check(finished, deep=True).sound


def test_lost_images_are_named_if_any_file_has_them(
    finished: StorageFolder, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    change(finished, shard_name(1), lambda data: data[:-1])
    change(finished, index_name(2), lambda data: data[:-1])
    with_tiles = {source for source in of_shard(make, 2) if int(source.partition(".")[0]) % 3}
    report = check(finished)
    assert set(report.redo) == of_shard(make, 1) | with_tiles
    text = str(report)
    assert "shards/part-00001.parquet: it is damaged" in text and f"{len(report.redo)} images" in text
    assert "--repair removes the damage" in text
    assert "[repaired]" in str(check(finished, repair=True))


def test_nothing_that_is_taken_out_is_thrown_away(finished: StorageFolder) -> None:
    """A sound shard whose index is damaged: its sources may be gone, and then its rows are all there is."""
    shard = finished.read(shard_name(1))
    change(finished, index_name(1), lambda data: data[:-1])
    check(finished, repair=True)
    assert finished.read("damaged/shards-part-00001.parquet") == shard
    assert finished.read("damaged/index-part-00001.parquet") is not None


def test_overwrite_removes_what_a_repair_kept(finished: StorageFolder, make: SimpleNamespace) -> None:
    for name in (shard_name(1), index_name(2), "manifest.json", "run.json"):
        change(finished, name, lambda data: data[:-1])
    check(finished, repair=True)
    assert len(finished.files("damaged")) == 6
    finished.write("damaged/mine.txt", b"mine")
    begin_run(finished, make.run_record(), overwrite=True)
    assert finished.files("damaged") == ["mine.txt"]


def done_or_refused(store: StorageFolder, make: SimpleNamespace) -> set[str]:
    """What a job would not do again; nothing if it refuses the output and names the repair."""
    try:
        return set(find_done(store, make.DIGEST))
    except IdcError as error:
        if "idc-ray verify" not in str(error):
            raise
        return set()


@pytest.mark.parametrize("after", [False, True], ids=["before_the_change", "after_it"])
def test_a_repair_that_is_killed_at_any_change_is_repeated(make: SimpleNamespace, after: bool) -> None:
    """Catches a repair that deletes the evidence of other damage; a job in between refuses or repeats lost images."""
    expected: dict[str, bytes | None] = {}
    changes = None
    kill = -1
    while changes is None or kill < changes:
        store, objects = in_memory(make)
        expected = expected or contents(store)
        change(store, shard_name(0), lambda data: data[:-1])
        change(store, index_name(1), lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:])
        change(store, "run.json", lambda data: data.replace(b'"d1"', b'"d2"'))
        before = len(objects.changes)
        objects.fail_after = after
        objects.fail_at = before + kill if kill >= 0 else None
        if kill < 0:
            check(store, repair=True)
            changes = len(objects.changes) - before
        else:
            # The last change gives the lock back; a failure of that is only logged.
            with contextlib.nullcontext() if kill == changes - 1 else pytest.raises(OSError, match="killed"):
                check(store, repair=True)
        objects.fail_at = None
        objects.objects.pop("bucket/out/.lock", None)  # a lease that would expire
        assert done_or_refused(store, make) <= {make.image_id(source) for source in of_shard(make, 1, 2)}, kill
        report = check(store, repair=True)
        assert report.sound, (kill, report)
        assert set(find_done(store, make.DIGEST)) == {make.image_id(source) for source in of_shard(make, 2)}, kill
        condense(store, make)
        assert contents(store) == expected, kill
        assert check(store, deep=True).sound
        kill += 1
    assert changes > 8


def test_a_repair_that_ends_with_its_process_at_any_change_is_repeated(tmp_path: Path, make: SimpleNamespace) -> None:
    """The same on a disk, by a process that is gone at once, with its lock and its temporary files."""
    program = (
        "import os, sys\n"
        "from idc_ray.store import atomic\n"
        "from idc_ray.store.verify import verify\n"
        "left, real = [int(sys.argv[2])], (os.replace, os.unlink, os.fsync)\n"
        "def counted(call):\n"
        "    def one(*args, **options):\n"
        "        left[0] -= 1\n"
        "        if left[0] < 0: os._exit(9)\n"
        "        return call(*args, **options)\n"
        "    return one\n"
        "os.replace, os.unlink, os.fsync = map(counted, real)\n"
        "sys.exit(0 if verify(sys.argv[1], repair=True).sound else 1)\n"
    )
    kill, code, expected = 0, 9, {}
    while code == 9:
        store = resolve(str(tmp_path / f"out{kill}"))
        condense(store, make)
        expected = expected or contents(store)
        change(store, shard_name(0), lambda data: data[:-1])
        change(store, "manifest.json", lambda data: data.replace(b"1.0", b"2.0"))
        code = subprocess.run([sys.executable, "-c", program, store.uri, str(kill)], check=False).returncode
        assert check(store, repair=True).sound
        condense(store, make)
        assert contents(store) == expected, kill
        assert check(store).sound and not list(Path(store.uri).rglob(".tmp-*"))
        kill += 2 if kill < 12 else 5
    assert code == 0 and kill > 8


def test_a_damaged_run_record_is_rewritten_by_its_own_command_only(
    finished: StorageFolder, make: SimpleNamespace
) -> None:
    record = read_run(finished)
    assert record is not None
    edit_json(finished, "run.json", lambda value: value["config"].update(scale=4))
    for read in (lambda: read_run(finished), lambda: begin_run(finished, record)):
        with pytest.raises(IdcError, match=r"run\.json does not match its checksum.*idc-ray verify"):
            read()
    report = check(finished, repair=True)
    assert [fault.file for fault in report.faults] == ["run.json"] and report.sound and report.finished
    assert any("run.json" in note for note in check(finished).notes)
    with pytest.raises(BadRequest, match="a repair removed it; the condense command of this output"):
        read_run(finished)
    with pytest.raises(BadRequest, match="of digest d1 whose run.json was damaged, but requested is d9"):
        begin_run(finished, dataclasses.replace(record, digest="d9"))
    again = begin_run(finished, dataclasses.replace(record, shard_count=77))
    assert again == record == read_run(finished)
    assert len(find_done(finished, make.DIGEST)) == 12 and check(finished).sound


def test_a_missing_run_record_is_damage(finished: StorageFolder) -> None:
    finished.delete("run.json")
    assert [fault.what for fault in check(finished).faults] == ["it is missing"]
    assert check(finished, repair=True).sound


def test_a_run_of_which_nothing_is_known_cannot_be_repaired(store: StorageFolder, make: SimpleNamespace) -> None:
    """Catches guesses: images of two runs, and no word of which one it is."""
    make.commit(store, "a.png")
    commit_part(store, "d2", [(make.record("b.png"), make.rows("b.png", config_digest="d2"))])
    report = check(store, repair=True)
    assert not report.sound and "cannot be repaired" in str(report)
    assert list_parts(store, "d1") and list_parts(store, "d2")


def test_another_version_is_no_damage(finished: StorageFolder) -> None:
    """Catches a repair of what a newer version wrote."""
    edit_json(finished, "run.json", lambda value: value.update(format_version=3), seal=True)
    with pytest.raises(BadRequest, match="format_version 3"):
        check(finished, repair=True)
    assert not finished.files("damaged")


def test_an_output_of_an_earlier_version_is_sound(finished: StorageFolder) -> None:
    """Catches false reports of damage in intact sets."""
    for name in ("manifest.json", "run.json"):
        edit_json(finished, name, lambda value: [value.pop("sha256"), value.pop("indexes", None)])
    report = check(finished)
    assert report.sound and report.finished
    assert any("earlier version" in note for note in report.notes)
    change(finished, shard_name(1), lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:])
    assert [fault.file for fault in check(finished).faults] == [shard_name(1)]


# What is not finished


def test_an_unfinished_output_is_sound_until_one_of_its_parts_is_not(
    store: StorageFolder, make: SimpleNamespace
) -> None:
    condense(store, make, finish=False)
    compact(store, make.DIGEST, 0, SHARDS)
    assert check(store, deep=True).sound and not check(store).finished
    bad = next(source for source in SOURCES if shard_of(make.image_id(source), SHARDS) == 1)
    name = part_name(make.DIGEST, [make.image_id(bad)])
    change(store, name, lambda data: data[:-7])
    (fault,) = check(store).faults
    assert fault.file == name and fault.images == (make.image_id(bad),)
    assert check(store, repair=True).sound
    assert set(find_done(store, make.DIGEST)) == {make.image_id(source) for source in SOURCES if source != bad}
    condense(store, make)
    assert check(store, deep=True).sound


def test_parts_left_by_a_finished_run_are_named(finished: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(finished, "new.png", tiles=0)
    report = check(finished)
    assert [fault.what for fault in report.faults] == [
        "1 parts are not in shards yet; the same condense command continues"
    ]
    assert check(finished, repair=True).sound
    assert make.image_id("new.png") in find_done(finished, make.DIGEST)


def test_a_part_of_two_shards_is_taken_out(store: StorageFolder, make: SimpleNamespace) -> None:
    """Catches images that no compaction finds: as after a repair that lost how many shards there are."""
    condense(store, make, finish=False)
    images = [(make.record(source, 0), []) for source in ("x.png", "y.png", "z.png", "u.png")]
    commit_part(store, make.DIGEST, images)
    first = min(make.image_id(record.source) for record, _ in images)
    with pytest.raises(IdcError, match="images of several shards.*--repair"):
        compact(store, make.DIGEST, shard_of(first, SHARDS), SHARDS)
    (fault,) = check(store, repair=True).faults
    assert "several shards" in fault.what and len(fault.images) == 4
    condense(store, make)
    assert check(store, deep=True).sound


def test_parts_of_another_run_are_named(finished: StorageFolder, make: SimpleNamespace) -> None:
    commit_part(finished, "d2", [(make.record("a.png"), make.rows("a.png", config_digest="d2"))])
    report = check(finished, repair=True)
    assert [fault.file for fault in report.faults] == ["parts/d2"] and report.sound and report.finished
    assert not list_parts(finished, "d2")


def test_a_killed_compaction_is_no_damage(make: SimpleNamespace) -> None:
    """Catches a repair that takes out a shard because it is new and its index is old."""
    for kill in range(6):
        store, objects = in_memory(make)
        expected = contents(store)
        source = next(s for s in SOURCES if shard_of(make.image_id(s), SHARDS) == 1)
        tiles = int(source.partition(".")[0]) % 3
        part = [
            dataclasses.replace(row, lr=png(99, SIDE), hr=png(99, 2 * SIDE))
            for row in make.rows(source, tiles + 1)
        ]  # fmt: skip
        commit_part(store, make.DIGEST, [(make.record(source, tiles + 1), part)])
        objects.fail_at = len(objects.changes) + kill
        with pytest.raises(OSError, match="killed"):
            compact(store, make.DIGEST, 1, SHARDS)
        objects.fail_at = None
        if read_manifest(store) is None:
            assert check(store).sound, kill
        assert check(store, repair=True).sound
        compact(store, make.DIGEST, 1, SHARDS)
        assert len(find_done(store, make.DIGEST)) == 12, kill
        after = contents(store)
        assert {name for name in expected if expected[name] != after[name]} == {shard_name(1)}
        assert check(store).sound


def test_a_shard_that_is_damaged_while_it_was_replaced_goes_and_its_parts_stay(make: SimpleNamespace) -> None:
    store, objects = in_memory(make)
    expected = contents(store)
    source = next(s for s in SOURCES if shard_of(make.image_id(s), SHARDS) == 1 and int(s[:-4]) % 3)
    number = int(source[:-4])
    rows = [dataclasses.replace(row, lr=png(number, SIDE), hr=png(number, 2 * SIDE))
            for row in make.rows(source, number % 3)]  # fmt: skip
    commit_part(store, make.DIGEST, [(make.record(source, number % 3), rows)])
    objects.fail_at = len(objects.changes) + 3  # manifest gone, note and shard written
    with pytest.raises(OSError, match="killed"):
        compact(store, make.DIGEST, 1, SHARDS)
    objects.fail_at = None
    change(store, shard_name(1), lambda data: data[:-1])
    assert [fault.file for fault in check(store, repair=True).faults] == [shard_name(1)]
    assert list_parts(store, make.DIGEST) == [part_name(make.DIGEST, [make.image_id(source)])]
    assert not list_pending(store)
    condense(store, make)
    assert contents(store) == expected


def test_a_damaged_note_goes_and_the_sound_shard_stays(finished: StorageFolder) -> None:
    finished.write(pending_name(1), b"{")
    before = contents(finished, ("shards", "index"))
    assert check(finished, repair=True).sound
    after = contents(finished, ("shards", "index"))
    assert after == {name: data for name, data in before.items() if name != pending_name(1)}


# Rows that fit their checksums and are wrong all the same


def test_rows_that_are_not_the_index_s_tiles_are_found(store: StorageFolder, make: SimpleNamespace) -> None:
    """A row is missing, and the index states the checksum of what is there."""
    condense(store, make)
    store.delete("manifest.json")
    entry = read_index(store, 1)
    assert entry is not None
    data = shard_bytes([read_shard(store, 1).slice(1)])
    store.write(shard_name(1), data)
    info = dataclasses.replace(entry.info, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    write_index(store, info, records_from_table(entry.table))
    check_shards(store)  # checksums alone say nothing
    (fault,) = check(store).faults
    assert fault.file == shard_name(1) and "wrong rows" in fault.what
    assert set(fault.images) == of_shard(make, 1)


def test_what_a_run_does_not_store_is_missed_nowhere_and_found_where_it_is(
    store: StorageFolder, make: SimpleNamespace
) -> None:
    """Sets of LR tiles are compacted, merged and sound; an HR tile among them, or a missing LR tile, is not."""
    begin_run(store, make.run_record(shard_count=1, config={"scale": 2, "tile_size": SIDE, "store": {"tiles": "lr"}}))
    stored = {"a.png": (1, None), "b.png": (2, None), "c.png": (3, 3), "d.png": (None, None)}
    for source, (lr, hr) in stored.items():
        (row,) = make.rows(source, 1)
        images = {"lr": lr and png(lr, SIDE), "hr": hr and png(hr, 2 * SIDE)}
        commit_part(store, make.DIGEST, [(make.record(source, 1), [dataclasses.replace(row, labels=None, **images)])])
        compact(store, make.DIGEST, 0, 1)
        if source == "b.png":
            write_manifest(store, make.DIGEST, 24, {})
            assert check(store, deep=True).sound
            assert read_shard(store, 0)["hr"].null_count == 2
    for source, wrong in (("c.png", "it is stored, but the run stores none"), ("d.png", "it is not stored")):
        with pytest.raises(ValueError, match=wrong):
            check_pngs(read_shard(store, 0).filter(pc.field("source") == source), {"lr": SIDE})


def test_only_a_deep_check_decodes_pngs(store: StorageFolder, make: SimpleNamespace) -> None:
    """Tiles of another size, or no PNG at all, written by a bug: the checksums are theirs."""
    condense(store, make, [s for s in SOURCES if s != "1.png"], finish=False)
    rows = [dataclasses.replace(make.rows("1.png", 1)[0], lr=png(1, SIDE), hr=png(1, 2 * SIDE - 1))]
    commit_part(store, make.DIGEST, [(make.record("1.png", 1), rows)])
    assert [fault.images for fault in check(store, deep=True).faults] == [(make.image_id("1.png"),)]
    for shard in range(SHARDS):
        compact(store, make.DIGEST, shard, SHARDS)
    write_manifest(store, make.DIGEST, 24, {})
    assert check(store).sound
    shard = shard_of(make.image_id("1.png"), SHARDS)
    (fault,) = check(store, deep=True).faults
    assert fault.file == shard_name(shard) and "hr of image" in fault.what and "7 x 7" in fault.what
    assert check(store, repair=True, deep=True).sound
    condense(store, make)
    assert check(store, deep=True).sound


def test_a_foreign_file_with_the_name_of_a_shard_is_named(finished: StorageFolder) -> None:
    """Rows that ``load_dataset("shards/*.parquet")`` would have twice."""
    finished.write("shards/copy.parquet", finished.read(shard_name(0)) or b"")
    finished.write("shards/notes.txt", b"mine")
    report = check(finished, repair=True)
    assert [fault.file for fault in report.left] == ["shards/copy.parquet"]
    assert finished.files("shards")[0] == "copy.parquet" and report.finished


def test_temporary_files_of_dead_writers_are_named_and_removed(tmp_path: Path, make: SimpleNamespace) -> None:
    store = resolve(str(tmp_path / "out"))
    condense(store, make)
    left = tmp_path / "out" / "shards" / f".tmp-host-1-{'0' * 32}"
    left.write_bytes(b"half a shard")
    os.utime(left, (0, 0))
    assert [fault.file for fault in check(store).faults] == [f"shards/{left.name}"]
    assert check(store, repair=True).sound and not left.exists()
    assert check(store).sound and not store.files("damaged")


def test_a_damaged_record_of_a_failed_image_lets_it_be_tried_again(
    finished: StorageFolder, make: SimpleNamespace
) -> None:
    quarantine_image(finished, make.DIGEST, make.quarantine_entry("bad.png"))
    name = f"quarantine/{make.DIGEST}/{make.image_id('bad.png')}.json"
    assert check(finished).sound
    change(finished, name, lambda data: data[:-3])
    assert [fault.file for fault in check(finished, repair=True).faults] == [name]
    assert not quarantined_ids(finished, make.DIGEST)


# Around it


def test_a_job_at_work_is_left_alone(finished: StorageFolder) -> None:
    with lock(finished, holder_text()):
        for repair in (True, False):
            with pytest.raises(Locked):
                check(finished, repair=repair)
    with pytest.raises(BadRequest, match="no condensed set at .*nowhere"):
        verify(f"{finished.uri}/nowhere" if finished.is_local else "/nowhere")


def test_the_resume_of_a_finished_output_notices_what_is_cheap_to_notice(
    finished: StorageFolder, make: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches images that are silently done again, or never, because files of a finished run are gone."""
    whole = finished.read(shard_name(1)) or b""
    index = finished.read(index_name(1)) or b""

    def refused(text: str) -> None:
        with pytest.raises(IdcError, match=rf"(?s){text}.*idc-ray verify"):
            find_done(finished, make.DIGEST)
        finished.write(shard_name(1), whole)
        finished.write(index_name(1), index)

    change(finished, shard_name(1), lambda data: data + b"x")
    refused("part-00001.parquet is damaged: .*another size")
    change(finished, shard_name(1), lambda data: data[:-8] + b"\xff\xff\xff\xff" + data[-4:])
    refused("part-00001.parquet has no complete footer")
    finished.delete(shard_name(1))
    refused("part-00001.parquet is missing")
    finished.delete(index_name(1))
    refused("part-00001.parquet has no entry")
    change(finished, index_name(1), lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:])
    refused("index/part-00001.parquet does not match its checksum|not a complete index")
    edit_json(finished, "manifest.json", lambda value: value.update(images=11))
    with pytest.raises(IdcError, match=r"manifest\.json does not match its checksum.*idc-ray verify"):
        find_done(finished, make.DIGEST)
    finished.delete("manifest.json")
    write_manifest(finished, make.DIGEST, 24, {})
    assert not caplog.text
    finished.delete(shard_name(1))
    finished.delete(index_name(1))
    assert len(find_done(finished, make.DIGEST)) == 12 - len(of_shard(make, 1))
    assert (
        f"shards/part-00001.parquet and its index are missing; condensing its {len(of_shard(make, 1))} images"
        in caplog.text
    )


def test_the_command(tmp_path: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    store = resolve(str(tmp_path / "out"))
    condense(store, make)
    assert main([store.uri]) == main([store.uri, "--deep"]) == 0
    assert "sound, finished" in capsys.readouterr().out
    change(store, shard_name(1), lambda data: data[:-1])
    assert main([store.uri, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["sound"] and set(found["redo"]) == of_shard(make, 1)
    assert found["faults"][0]["file"] == shard_name(1)
    assert main([store.uri, "--repair"]) == main([store.uri]) == 0


def test_damage_in_an_object_store_is_found_and_repaired(s3: S3, make: SimpleNamespace) -> None:
    store = resolve(s3.uri("bucket/verified"))
    condense(store, make)
    expected = contents(store)
    with s3.counting() as requests:
        assert verify(s3.uri("bucket/verified"), deep=True).sound
    assert {request.method for request in requests} <= {"GET", "HEAD"}
    change(store, shard_name(0), lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:])
    change(store, index_name(2), lambda data: data[:-5])
    report = verify(s3.uri("bucket/verified"), repair=True)
    assert report.sound and {fault.file for fault in report.faults} == {shard_name(0), index_name(2)}
    assert len(find_done(store, make.DIGEST)) == len(of_shard(make, 1))
    condense(store, make)
    assert contents(store) == expected and verify(s3.uri("bucket/verified")).sound
    s3.fault = lambda request: "AccessDenied" if request.key.endswith(shard_name(1)) else None
    with pytest.raises(IdcError, match="cannot .*check the credentials"):
        verify(s3.uri("bucket/verified"), repair=True)
    s3.fault = lambda request: None
    assert verify(s3.uri("bucket/verified")).sound  # a refused request is no damage
