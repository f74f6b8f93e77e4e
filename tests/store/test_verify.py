"""Whatever is damaged is found, and what a repair takes out is exactly what the job does again."""

from __future__ import annotations

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
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import PyFileSystem

from idc_ray.commands.verify import main
from idc_ray.errors import BadRequest, IdcError, Locked
from idc_ray.images import encode_png
from idc_ray.store import Store, holder_text, lease, shard_of
from idc_ray.store.index import read_index, write_index
from idc_ray.store.layout import index_name, part_name, pending_name, shard_name
from idc_ray.store.records import records_from_table
from idc_ray.store.sealed import sealed
from idc_ray.store.shards import shard_bytes
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


def condense(store: Store, make: SimpleNamespace, sources: Iterable[str] = SOURCES, finish: bool = True) -> None:
    """What the job does: the images that are not done, then the shards, then the manifest."""
    config = {"scale": 2, "tile_size": SIDE}
    run = store.begin_run(make.run_record(shard_count=SHARDS, config=config))
    done = store.done(make.DIGEST)
    for source in sources:
        if make.image_id(source) in done:
            continue
        number = int(source.partition(".")[0])
        tiles = number % 3
        rows = make.rows(source, tiles)
        rows = [dataclasses.replace(row, lr=png(number, SIDE), hr=png(number, 2 * SIDE)) for row in rows]
        store.commit_part(make.DIGEST, make.record(source, tiles), rows)
    if finish:
        for shard in range(SHARDS):
            store.compact(make.DIGEST, shard, run.shard_count)
        store.write_manifest(make.DIGEST, {"wall": 1.0}, len(SOURCES))


@pytest.fixture
def finished(store: Store, make: SimpleNamespace) -> Store:
    condense(store, make)
    return store


def in_memory(make: SimpleNamespace, finish: bool = True) -> tuple[Store, Any]:
    """An output whose changes are counted, and can be made to fail."""
    objects = make.ObjectStore()
    store = Store.open("bucket/out", PyFileSystem(objects))
    condense(store, make, finish=finish)
    return store, objects


def check(store: Store, **how: bool) -> Report:
    return verify_output(store.storage, **how)


def contents(store: Store, folders: Iterable[str] = ("shards",)) -> dict[str, bytes | None]:
    names = [f"{folder}/{name}" for folder in folders for name in store.storage.files(folder)]
    return {name: store.storage.read(name) for name in names}


def change(store: Store, name: str, edit: Callable[[bytes], bytes]) -> None:
    data = store.storage.read(name)
    assert data is not None
    store.storage.write(name, edit(data))


def edit_json(store: Store, name: str, edit: Callable[[dict[str, Any]], Any], seal: bool = False) -> None:
    """Edits a record as a text editor would; with its checksum made anew if asked for."""
    value = json.loads(store.storage.read(name) or b"")
    edit(value)
    if seal:
        value = sealed({key: entry for key, entry in value.items() if key != "sha256"})
    store.storage.write_json(name, value)


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
    assert not store.storage.files("damaged") and store.read_manifest() is not None


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

    def swap(store: Store) -> None:
        one, two = (store.storage.read(shard_name(shard)) for shard in (0, 2))
        assert one is not None and two is not None and one != two
        store.storage.write(shard_name(0), two)
        store.storage.write(shard_name(2), one)

    def swap_with_indexes(store: Store) -> None:
        swap(store)
        one, two = (store.storage.read(index_name(shard)) for shard in (0, 2))
        assert one is not None and two is not None
        store.storage.write(index_name(0), two)
        store.storage.write(index_name(2), one)

    def rewrite(store: Store) -> None:
        """The same rows less one, in a shard that can be read."""
        table = store.read_shard(1).slice(1)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        store.storage.write(shard_name(1), sink.getvalue())

    def count(where: str, by: int, seal: bool) -> Callable[[Store], None]:
        def edit(value: dict[str, Any]) -> None:
            (value if where == "manifest" else value["shards"][1])["rows"] += by

        return lambda store: edit_json(store, "manifest.json", edit, seal)

    def drop(store: Store, *names: str) -> None:
        for name in names:
            store.storage.delete(name)

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
def test_damage_is_named_and_a_repair_and_the_same_job_mend_it(
    finished: Store, make: SimpleNamespace, damage: Callable[[Store], None], file: str, shards: tuple[int, ...]
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
    done = finished.done(make.DIGEST)
    assert set(done) == {make.image_id(source) for source in SOURCES if source not in known}
    condense(finished, make)
    assert contents(finished) == expected
    assert check(finished, deep=True).sound


def test_what_has_to_be_done_again_is_named_wherever_something_says_it(
    finished: Store, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    change(finished, shard_name(1), lambda data: data[:-1])
    change(finished, index_name(2), lambda data: data[:-1])
    with_tiles = {source for source in of_shard(make, 2) if int(source.partition(".")[0]) % 3}
    report = check(finished)
    assert set(report.redo) == of_shard(make, 1) | with_tiles
    text = str(report)
    assert "shards/part-00001.parquet: it is damaged" in text and f"{len(report.redo)} images" in text
    assert "--repair takes that out" in text
    assert "[repaired]" in str(check(finished, repair=True))


def test_nothing_that_is_taken_out_is_thrown_away(finished: Store) -> None:
    """A sound shard whose index is damaged: its sources may be gone, and then its rows are all there is."""
    shard = finished.storage.read(shard_name(1))
    change(finished, index_name(1), lambda data: data[:-1])
    check(finished, repair=True)
    assert finished.storage.read("damaged/shards-part-00001.parquet") == shard
    assert finished.storage.read("damaged/index-part-00001.parquet") is not None


def test_overwrite_removes_what_a_repair_kept(finished: Store, make: SimpleNamespace) -> None:
    for name in (shard_name(1), index_name(2), "manifest.json", "run.json"):
        change(finished, name, lambda data: data[:-1])
    check(finished, repair=True)
    assert len(finished.storage.files("damaged")) == 6
    finished.storage.write("damaged/mine.txt", b"mine")
    finished.begin_run(make.run_record(), overwrite=True)
    assert finished.storage.files("damaged") == ["mine.txt"]


def done_or_refused(store: Store, make: SimpleNamespace) -> set[str]:
    """What a job would not do again; nothing if it refuses the output and names the repair."""
    try:
        return set(store.done(make.DIGEST))
    except IdcError as error:
        if "idc-ray verify" not in str(error):
            raise
        return set()


@pytest.mark.parametrize("after", [False, True], ids=["before_the_change", "after_it"])
def test_a_repair_that_is_killed_at_any_change_is_repeated(make: SimpleNamespace, after: bool) -> None:
    """Catches a repair that deletes what told of other damage; in between, a job refuses or does only what is lost."""
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
            with pytest.raises(OSError, match="killed"):
                check(store, repair=True)
        objects.fail_at = None
        objects.objects.pop("bucket/out/.lock", None)  # a lease that would expire
        assert done_or_refused(store, make) <= {make.image_id(source) for source in of_shard(make, 1, 2)}, kill
        report = check(store, repair=True)
        assert report.sound, (kill, report)
        assert set(store.done(make.DIGEST)) == {make.image_id(source) for source in of_shard(make, 2)}, kill
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
        store = Store.open(str(tmp_path / f"out{kill}"))
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


def test_a_damaged_run_record_is_written_anew_by_its_own_command_only(finished: Store, make: SimpleNamespace) -> None:
    record = finished.read_run()
    assert record is not None
    edit_json(finished, "run.json", lambda value: value["config"].update(scale=4))
    for read in (finished.read_run, lambda: finished.begin_run(record)):
        with pytest.raises(IdcError, match=r"run\.json has another checksum.*idc-ray verify"):
            read()
    report = check(finished, repair=True)
    assert [fault.file for fault in report.faults] == ["run.json"] and report.sound and report.finished
    assert any("run.json" in note for note in check(finished).notes)
    with pytest.raises(BadRequest, match="a repair took it out; the condense command that made this output"):
        finished.read_run()
    with pytest.raises(BadRequest, match="of digest d1 whose run.json was damaged, asked for is d9"):
        finished.begin_run(dataclasses.replace(record, digest="d9"))
    again = finished.begin_run(dataclasses.replace(record, shard_count=77))
    assert again == record == finished.read_run()
    assert len(finished.done(make.DIGEST)) == 12 and check(finished).sound


def test_a_missing_run_record_is_damage(finished: Store) -> None:
    finished.storage.delete("run.json")
    assert [fault.what for fault in check(finished).faults] == ["it is missing"]
    assert check(finished, repair=True).sound


def test_a_run_of_which_nothing_is_known_cannot_be_repaired(store: Store, make: SimpleNamespace) -> None:
    """Catches guesses: images of two runs, and no word of which one it is."""
    make.commit(store, "a.png")
    store.commit_part("d2", make.record("b.png"), make.rows("b.png", config_digest="d2"))
    report = check(store, repair=True)
    assert not report.sound and "no repair can tell" in str(report)
    assert store.list_parts("d1") and store.list_parts("d2")


def test_another_version_is_no_damage(finished: Store) -> None:
    """Catches a repair of what a newer version wrote."""
    edit_json(finished, "run.json", lambda value: value.update(format_version=2), seal=True)
    with pytest.raises(BadRequest, match="format_version 2"):
        check(finished, repair=True)
    assert not finished.storage.files("damaged")


def test_an_output_of_an_earlier_version_is_sound(finished: Store) -> None:
    """Catches damage that is told of every set that exists."""
    for name in ("manifest.json", "run.json"):
        edit_json(finished, name, lambda value: [value.pop("sha256"), value.pop("indexes", None)])
    report = check(finished)
    assert report.sound and report.finished
    assert any("earlier version" in note for note in report.notes)
    change(finished, shard_name(1), lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:])
    assert [fault.file for fault in check(finished).faults] == [shard_name(1)]


# What is not finished


def test_an_unfinished_output_is_sound_until_one_of_its_parts_is_not(store: Store, make: SimpleNamespace) -> None:
    condense(store, make, finish=False)
    store.compact(make.DIGEST, 0, SHARDS)
    assert check(store, deep=True).sound and not check(store).finished
    bad = next(source for source in SOURCES if shard_of(make.image_id(source), SHARDS) == 1)
    name = part_name(make.DIGEST, make.image_id(bad))
    change(store, name, lambda data: data[:-7])
    (fault,) = check(store).faults
    assert fault.file == name and fault.images == (make.image_id(bad),)
    assert check(store, repair=True).sound
    assert set(store.done(make.DIGEST)) == {make.image_id(source) for source in SOURCES if source != bad}
    condense(store, make)
    assert check(store, deep=True).sound


def test_parts_that_a_finished_run_has_left_are_named(finished: Store, make: SimpleNamespace) -> None:
    make.commit(finished, "new.png", tiles=0)
    report = check(finished)
    assert [fault.what for fault in report.faults] == [
        "1 finished images wait for their shards; the same condense command goes on"
    ]
    assert check(finished, repair=True).sound
    assert make.image_id("new.png") in finished.done(make.DIGEST)


def test_parts_of_another_run_are_named(finished: Store, make: SimpleNamespace) -> None:
    finished.commit_part("d2", make.record("a.png"), make.rows("a.png", config_digest="d2"))
    report = check(finished, repair=True)
    assert [fault.file for fault in report.faults] == ["parts/d2"] and report.sound and report.finished
    assert not finished.list_parts("d2")


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
        store.commit_part(make.DIGEST, make.record(source, tiles + 1), part)
        objects.fail_at = len(objects.changes) + kill
        with pytest.raises(OSError, match="killed"):
            store.compact(make.DIGEST, 1, SHARDS)
        objects.fail_at = None
        if store.read_manifest() is None:
            assert check(store).sound, kill
        assert check(store, repair=True).sound
        store.compact(make.DIGEST, 1, SHARDS)
        assert len(store.done(make.DIGEST)) == 12, kill
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
    store.commit_part(make.DIGEST, make.record(source, number % 3), rows)
    objects.fail_at = len(objects.changes) + 3  # manifest gone, note and shard written
    with pytest.raises(OSError, match="killed"):
        store.compact(make.DIGEST, 1, SHARDS)
    objects.fail_at = None
    change(store, shard_name(1), lambda data: data[:-1])
    assert [fault.file for fault in check(store, repair=True).faults] == [shard_name(1)]
    assert store.list_parts(make.DIGEST) == {make.image_id(source)} and not store.pending_shards()
    condense(store, make)
    assert contents(store) == expected


def test_a_damaged_note_goes_and_the_sound_shard_stays(finished: Store) -> None:
    finished.storage.write(pending_name(1), b"{")
    before = contents(finished, ("shards", "index"))
    assert check(finished, repair=True).sound
    after = contents(finished, ("shards", "index"))
    assert after == {name: data for name, data in before.items() if name != pending_name(1)}


# Rows that fit their checksums and are wrong all the same


def test_rows_that_are_not_the_index_s_tiles_are_found(store: Store, make: SimpleNamespace) -> None:
    """A row is missing, and the index states the checksum of what is there."""
    condense(store, make)
    store.storage.delete("manifest.json")
    entry = read_index(store.storage, 1)
    assert entry is not None
    data = shard_bytes([store.read_shard(1).slice(1)])
    store.storage.write(shard_name(1), data)
    info = dataclasses.replace(entry.info, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    write_index(store.storage, info, records_from_table(entry.table))
    store.check_shards()  # checksums alone say nothing
    (fault,) = check(store).faults
    assert fault.file == shard_name(1) and "wrong rows" in fault.what
    assert set(fault.images) == of_shard(make, 1)


def test_only_a_deep_check_looks_into_pngs(store: Store, make: SimpleNamespace) -> None:
    """Tiles of another size, or no PNG at all, written by a bug: the checksums are theirs."""
    condense(store, make, [s for s in SOURCES if s != "1.png"], finish=False)
    rows = [dataclasses.replace(make.rows("1.png", 1)[0], lr=png(1, SIDE), hr=png(1, 2 * SIDE - 1))]
    store.commit_part(make.DIGEST, make.record("1.png", 1), rows)
    assert [fault.images for fault in check(store, deep=True).faults] == [(make.image_id("1.png"),)]
    for shard in range(SHARDS):
        store.compact(make.DIGEST, shard, SHARDS)
    store.write_manifest(make.DIGEST, {})
    assert check(store).sound
    shard = shard_of(make.image_id("1.png"), SHARDS)
    (fault,) = check(store, deep=True).faults
    assert fault.file == shard_name(shard) and "hr of image" in fault.what and "7 x 7" in fault.what
    assert check(store, repair=True, deep=True).sound
    condense(store, make)
    assert check(store, deep=True).sound


def test_a_file_that_readers_would_take_for_a_shard_is_named(finished: Store) -> None:
    """Rows that ``load_dataset("shards/*.parquet")`` would have twice."""
    finished.storage.write("shards/copy.parquet", finished.storage.read(shard_name(0)) or b"")
    finished.storage.write("shards/notes.txt", b"mine")
    report = check(finished, repair=True)
    assert [fault.file for fault in report.left] == ["shards/copy.parquet"]
    assert finished.storage.files("shards")[0] == "copy.parquet" and report.finished


def test_what_dead_writers_left_is_named_and_removed(tmp_path: Path, make: SimpleNamespace) -> None:
    store = Store.open(str(tmp_path / "out"))
    condense(store, make)
    left = tmp_path / "out" / "shards" / f".tmp-host-1-{'0' * 32}"
    left.write_bytes(b"half a shard")
    os.utime(left, (0, 0))
    assert [fault.file for fault in check(store).faults] == [f"shards/{left.name}"]
    assert check(store, repair=True).sound and not left.exists()
    assert check(store).sound and not store.storage.files("damaged")


def test_a_damaged_record_of_a_failed_image_lets_it_be_tried_again(finished: Store, make: SimpleNamespace) -> None:
    finished.quarantine(make.DIGEST, make.quarantine_entry("bad.png"))
    name = f"quarantine/{make.DIGEST}/{make.image_id('bad.png')}.json"
    assert check(finished).sound
    change(finished, name, lambda data: data[:-3])
    assert [fault.file for fault in check(finished, repair=True).faults] == [name]
    assert not finished.quarantined_ids(make.DIGEST)


# Around it


def test_a_job_at_work_is_left_alone(finished: Store) -> None:
    with finished.lock(holder_text()):
        for repair in (True, False):
            with pytest.raises(Locked):
                check(finished, repair=repair)
    with pytest.raises(BadRequest, match="no condensed set at .*nowhere"):
        verify(f"{finished.uri}/nowhere" if finished.storage.is_local else "/nowhere")


def test_the_resume_of_a_finished_output_notices_what_is_cheap_to_notice(
    finished: Store, make: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches images that are silently done again, or never, because files of a finished run are gone."""
    whole = finished.storage.read(shard_name(1)) or b""
    index = finished.storage.read(index_name(1)) or b""

    def refused(text: str) -> None:
        with pytest.raises(IdcError, match=rf"(?s){text}.*idc-ray verify"):
            finished.done(make.DIGEST)
        finished.storage.write(shard_name(1), whole)
        finished.storage.write(index_name(1), index)

    change(finished, shard_name(1), lambda data: data + b"x")
    refused("part-00001.parquet is damaged: .*another size")
    change(finished, shard_name(1), lambda data: data[:-8] + b"\xff\xff\xff\xff" + data[-4:])
    refused("part-00001.parquet has no whole footer")
    finished.storage.delete(shard_name(1))
    refused("part-00001.parquet is missing")
    finished.storage.delete(index_name(1))
    refused("part-00001.parquet has no entry")
    change(finished, index_name(1), lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:])
    refused("index/part-00001.parquet has another checksum|not a whole index")
    edit_json(finished, "manifest.json", lambda value: value.update(images=11))
    with pytest.raises(IdcError, match=r"manifest\.json has another checksum.*idc-ray verify"):
        finished.done(make.DIGEST)
    finished.storage.delete("manifest.json")
    finished.write_manifest(make.DIGEST, {})
    assert not caplog.text
    finished.storage.delete(shard_name(1))
    finished.storage.delete(index_name(1))
    assert len(finished.done(make.DIGEST)) == 12 - len(of_shard(make, 1))
    assert f"shards/part-00001.parquet and its index are missing; its {len(of_shard(make, 1))} images" in caplog.text


def test_the_command(tmp_path: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.open(str(tmp_path / "out"))
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
    store = Store.open(s3.uri("bucket/verified"))
    condense(store, make)
    expected = contents(store)
    with s3.counting() as requests:
        assert verify(s3.uri("bucket/verified"), deep=True).sound
    assert {request.method for request in requests} <= {"GET", "HEAD"}
    change(store, shard_name(0), lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:])
    change(store, index_name(2), lambda data: data[:-5])
    report = verify(s3.uri("bucket/verified"), repair=True)
    assert report.sound and {fault.file for fault in report.faults} == {shard_name(0), index_name(2)}
    assert len(store.done(make.DIGEST)) == len(of_shard(make, 1))
    condense(store, make)
    assert contents(store) == expected and verify(s3.uri("bucket/verified")).sound
    s3.fault = lambda request: "AccessDenied" if request.key.endswith(shard_name(1)) else None
    with pytest.raises(IdcError, match="cannot .*check the credentials"):
        verify(s3.uri("bucket/verified"), repair=True)
    s3.fault = lambda request: None
    assert verify(s3.uri("bucket/verified")).sound  # a refused request is no damage
