from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from idc_ray.errors import IdcError
from idc_ray.store import parts
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.layout import part_contents, part_name, shard_of
from idc_ray.store.parts import commit_images, commit_part, list_parts, read_part, read_records
from idc_ray.store.schema import ROW_SCHEMA, open_writer, rows_from_table, table_from_rows


def test_part_gives_back_what_was_committed_and_a_second_commit_is_harmless(
    store: StorageFolder, make: SimpleNamespace
) -> None:
    sources = sorted(("a.png", "b.png", "c.png"), key=make.image_id)
    images = [(make.record(source, tiles), make.rows(source, tiles)) for tiles, source in enumerate(sources)]
    commit_part(store, make.DIGEST, images)
    (name,) = list_parts(store, make.DIGEST)
    before = store.read(name)
    commit_part(store, make.DIGEST, images[::-1])
    assert list_parts(store, make.DIGEST) == [name] and store.read(name) == before
    part = read_part(store, name)
    assert list(part.records.values()) == [record for record, _ in images]
    assert read_records(store, name) == part.records
    assert [rows_from_table(table) for _, table in part.tables()] == [rows for _, rows in images]


def test_a_part_of_other_images_never_takes_the_place_of_one(store: StorageFolder, make: SimpleNamespace) -> None:
    """Catches finished images that are lost when the first of them is redone with others."""
    first, *rest = sorted((f"{i}.png" for i in range(5)), key=make.image_id)
    for sources in ([first, *rest[:2]], [first], [first, *rest[2:]]):
        commit_part(store, make.DIGEST, [(make.record(source), make.rows(source)) for source in sources])
    assert len(list_parts(store, make.DIGEST)) == 3
    assert set(find_done(store, make.DIGEST)) == {make.image_id(source) for source in (first, *rest)}


def test_images_of_a_call_are_committed_by_shard_and_in_parts_of_a_limited_size(
    store: StorageFolder, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a part that no compaction may delete, since it belongs to two shards."""
    images = [(make.record(f"{i}.png"), make.rows(f"{i}.png")) for i in range(40)]
    commit_images(store, make.DIGEST, 4, images)
    counts = [contents[1] for name in list_parts(store, make.DIGEST) if (contents := part_contents(name))]
    assert len(counts) == 4 and sum(counts) == 40
    for name in list_parts(store, make.DIGEST):
        assert len({shard_of(image_id, 4) for image_id in read_records(store, name)}) == 1
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    commit_images(store, "d2", 1, [(r, make.rows(r.source, config_digest="d2")) for r, _ in images[:3]])
    assert len(list_parts(store, "d2")) == 3
    commit_images(store, "d2", 1, [])


def test_parts_of_version_1_are_read_and_compacted(store: StorageFolder, make: SimpleNamespace) -> None:
    """Catches finished images of an earlier release that are done again: a file for each, named by its id."""
    sources = sorted((f"{i}.png" for i in range(4)), key=make.image_id)
    for tiles, source in enumerate(sources):
        sink = pa.BufferOutputStream()
        record = json.dumps(dataclasses.asdict(make.record(source, tiles))).encode()
        with open_writer(sink, ROW_SCHEMA.with_metadata({b"idc_ray.record": record})) as writer:
            if tiles:
                table = table_from_rows(make.rows(source, tiles))
                writer.write_table(table.replace_schema_metadata(writer.schema.metadata))
        image_id = make.image_id(source)
        store.write(f"parts/{make.DIGEST}/{image_id[:2]}/{image_id}.parquet", sink.getvalue())
    done = find_done(store, make.DIGEST)
    assert set(done) == {make.image_id(source) for source in sources}
    make.commit(store, "new.png")
    info = compact(store, make.DIGEST, 0, 1)
    assert info is not None and (info.images, info.rows) == (5, 8)
    assert list_parts(store, make.DIGEST) == []


def test_image_without_tiles_is_done(store: StorageFolder, make: SimpleNamespace) -> None:
    """Else a ratio below one tile an image would never finish."""
    make.commit(store, "empty.png", 0)
    empty = make.image_id("empty.png")
    (name,) = list_parts(store, make.DIGEST)
    assert list(read_part(store, name).records) == [empty] and empty in find_done(store, make.DIGEST)
    assert read_part(store, name).table.num_rows == 0


def test_parts_of_another_configuration_are_not_seen(store: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    assert list_parts(store, "other") == [] and len(find_done(store, "other")) == 0


@pytest.mark.parametrize(
    ("tiles", "change"), [(3, {}), (2, {"tile_index": 0}), (2, {"image_id": "0" * 16}), (2, {"config_digest": "other"})]
)
def test_rows_that_do_not_fit_the_record_are_refused(
    store: StorageFolder, make: SimpleNamespace, tiles: int, change: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        commit_part(store, make.DIGEST, [(make.record("a.png", tiles), make.rows("a.png", 2, **change))])
    assert list_parts(store, make.DIGEST) == []


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text" * 10])
def test_damaged_part_is_named_with_the_fix(
    store: StorageFolder, make: SimpleNamespace, damage: Callable[[bytes], bytes]
) -> None:
    make.commit(store, "a.png")
    (name,) = list_parts(store, make.DIGEST)
    store.write(name, damage(store.read(name)))
    for read in (lambda: read_part(store, name), lambda: find_done(store, make.DIGEST)):
        with pytest.raises(IdcError, match=r"parquet is not a complete part .*delete that file"):
            read()


def test_part_under_the_name_of_another_image_is_refused(store: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    data = store.read(part_name(make.DIGEST, [make.image_id("a.png")]))
    other = part_name(make.DIGEST, [make.image_id("b.png")])
    store.write(other, data)
    with pytest.raises(IdcError, match=make.image_id("a.png")):
        read_part(store, other)


def test_missing_part_is_file_not_found(store: StorageFolder, make: SimpleNamespace) -> None:
    with pytest.raises(FileNotFoundError):
        read_part(store, part_name(make.DIGEST, [make.image_id("a.png")]))


def test_twenty_thousand_parts_are_listed_in_seconds_without_opening_one(tmp_path: Path, make: SimpleNamespace) -> None:
    """A listing that is quadratic takes minutes."""
    ids = {hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(20_000)}
    for prefix in range(256):
        (tmp_path / "parts" / make.DIGEST / f"{prefix:02x}").mkdir(parents=True)
    for image_id in ids:
        os.close(os.open(f"{tmp_path}/{part_name(make.DIGEST, [image_id])}", os.O_CREAT))
    start = time.monotonic()
    names = list_parts(resolve(str(tmp_path)), make.DIGEST)
    assert time.monotonic() - start < 5
    assert len(names) == len(ids)
