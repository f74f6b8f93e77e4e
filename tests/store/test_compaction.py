from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from idc_ray.errors import IdcError
from idc_ray.store import atomic, index, shards
from idc_ray.store.attempts import count_attempt
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.index import check_shards, list_pending
from idc_ray.store.layout import index_name, pending_name, shard_name
from idc_ray.store.manifest import read_manifest, write_manifest
from idc_ray.store.parts import commit_part, list_parts
from idc_ray.store.shards import read_shard
from tests.crashes import list_attempts

SOURCES = [f"{i}.png" for i in range(6)]


def _fill(store: StorageFolder, make: SimpleNamespace) -> None:
    for i, source in enumerate(SOURCES):
        make.commit(store, source, tiles=i % 3, shade=i)


def _redo(store: StorageFolder, make: SimpleNamespace) -> None:
    """A second round: one image redone with other rows, one that now gets no tile, one that is new."""
    make.commit(store, SOURCES[1], tiles=3, shade=100)
    make.commit(store, SOURCES[2], tiles=0)
    make.commit(store, "new.png", tiles=1, shade=200)


def _contents(store: StorageFolder) -> dict[str, bytes | None]:
    names = [f"{folder}/{name}" for folder in ("shards", "index") for name in store.files(folder)]
    return {name: store.read(name) for name in names}


def _rows(store: StorageFolder, shard: int = 0) -> dict[str, int]:
    sources = read_shard(store, shard)["source"].to_pylist()
    return {source: sources.count(source) for source in set(sources)}


def test_shard_holds_all_rows_in_order_and_the_parts_are_gone(store: StorageFolder, make: SimpleNamespace) -> None:
    _fill(store, make)
    info = compact(store, make.DIGEST, 0, 1)
    assert info is not None and (info.images, info.rows) == (6, 6)
    table = read_shard(store, 0)
    keys = list(zip(table["image_id"].to_pylist(), table["tile_index"].to_pylist(), strict=True))
    assert keys == sorted(keys) and len(set(keys)) == 6
    assert list_parts(store, make.DIGEST) == [] and list_pending(store) == []
    assert set(find_done(store, make.DIGEST)) == {make.image_id(source) for source in SOURCES}
    assert check_shards(store) == [info]


def test_a_redone_image_replaces_its_rows_also_by_none(store: StorageFolder, make: SimpleNamespace) -> None:
    """Rows of two attempts side by side would count an image twice."""
    _fill(store, make)
    compact(store, make.DIGEST, 0, 1)
    _redo(store, make)
    info = compact(store, make.DIGEST, 0, 1)
    assert info is not None and (info.images, info.rows) == (7, 7)
    assert _rows(store) == {"1.png": 3, "4.png": 1, "5.png": 2, "new.png": 1}
    table = read_shard(store, 0)
    redone = [row["lr"]["bytes"] for row in table.to_pylist() if row["source"] == "1.png"]
    assert redone == [row.lr for row in make.rows("1.png", 3, shade=100)]


def test_bytes_of_a_shard_do_not_depend_on_history_order_or_timings(tmp_path: Path, make: SimpleNamespace) -> None:
    stores = [resolve(str(tmp_path / name)) for name in ("one", "two")]
    _fill(stores[0], make)
    _redo(stores[0], make)
    compact(stores[0], make.DIGEST, 0, 1)
    for source in reversed(SOURCES):
        make.commit(stores[1], source, tiles=SOURCES.index(source) % 3, shade=SOURCES.index(source), seconds={"x": 9.0})
        compact(stores[1], make.DIGEST, 0, 1)
    _redo(stores[1], make)
    compact(stores[1], make.DIGEST, 0, 1)
    shards = [store.read(shard_name(0)) for store in stores]
    assert shards[0] == shards[1] is not None


def test_parts_of_several_images_are_merged_wherever_they_overlap(store: StorageFolder, make: SimpleNamespace) -> None:
    """Catches rows out of order, images that two parts hold, and parts that are held in memory until the end."""
    sources = [f"{i}.png" for i in range(30)]
    images = {s: (make.record(s, i % 3), make.rows(s, i % 3, shade=i)) for i, s in enumerate(sources)}
    for source in sources:
        commit_part(store, make.DIGEST, [images[source]])
    expected = compact(store, make.DIGEST, 0, 1)
    whole = _contents(store)
    for folder in ("shards", "index"):
        for name in store.files(folder):
            store.delete(f"{folder}/{name}")
    for begin in range(7):
        commit_part(store, make.DIGEST, [images[source] for source in sources[begin::7]])
    commit_part(store, make.DIGEST, [images[source] for source in sources[3:9]])  # by a worker that was taken for dead
    assert len(find_done(store, make.DIGEST)) == 30
    assert compact(store, make.DIGEST, 0, 1) == expected and _contents(store) == whole
    assert not list_parts(store, make.DIGEST)


def test_ranges_are_compacted_independently(store: StorageFolder, make: SimpleNamespace) -> None:
    _fill(store, make)
    compact(store, make.DIGEST, 1, 2)
    assert store.files("shards") == ["part-00001.parquet"]
    compact(store, make.DIGEST, 0, 2)
    assert sum(len(_rows(store, shard)) for shard in (0, 1)) == 4  # of six images, two have no tile
    assert len(find_done(store, make.DIGEST)) == 6


def test_nothing_to_compact_writes_nothing(store: StorageFolder, make: SimpleNamespace) -> None:
    assert compact(store, make.DIGEST, 0, 4) is None
    assert store.files("shards") == store.files("index") == []
    _fill(store, make)
    info = compact(store, make.DIGEST, 0, 1)
    before = _contents(store)
    assert compact(store, make.DIGEST, 0, 1) == info and _contents(store) == before


def _undisturbed(make: SimpleNamespace) -> tuple[dict[str, bytes | None], int, int]:
    """What the two rounds give, and how many changes the first and the second compaction make."""
    objects = make.ObjectStore()
    store = StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out")
    counts = []
    for prepare in (_fill, _redo):
        prepare(store, make)
        before = len(objects.changes)
        compact(store, make.DIGEST, 0, 1)
        counts.append(len(objects.changes) - before)
    return _contents(store), counts[0], counts[1]


@pytest.mark.parametrize("after", [False, True], ids=["before_the_change", "after_it"])
def test_killed_at_any_change_of_either_round_and_repeated_gives_the_same_bytes(
    make: SimpleNamespace, after: bool
) -> None:
    """Also when the next compaction comes with more parts, and is killed in turn: the shard is then one of three."""
    expected, first, second = _undisturbed(make)
    assert first >= 6 + 4 and second >= 3 + 4  # parts deleted, note, shard, index, note deleted
    # 0 note, 1 shard, 2 index, then the parts; of the second round: 0 manifest or note, and so on
    kills = [(i, None) for i in range(first)] + [(i, j) for i in range(1, 5) for j in range(0 if after else 5)]
    for i, j in kills:
        objects = make.ObjectStore()
        objects.fail_after = after
        store = StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out")
        _fill(store, make)
        objects.fail_at = len(objects.changes) + i
        with pytest.raises(OSError, match="killed"):
            compact(store, make.DIGEST, 0, 1)
        objects.fail_at = None
        assert set(find_done(store, make.DIGEST)) == {make.image_id(source) for source in SOURCES}, (i, j)
        check_shards(store)
        _redo(store, make)
        if j is not None:
            objects.fail_at = len(objects.changes) + j
            with contextlib.suppress(OSError):
                compact(store, make.DIGEST, 0, 1)
            objects.fail_at = None
            assert len(find_done(store, make.DIGEST)) == 7, (i, j)
        compact(store, make.DIGEST, 0, 1)
        assert _contents(store) == expected, (i, j)
        assert list_parts(store, make.DIGEST) == [] and len(find_done(store, make.DIGEST)) == 7


def test_killed_at_any_change_of_a_second_round_on_a_finished_shard(make: SimpleNamespace) -> None:
    expected, _, second = _undisturbed(make)
    for i in range(second):
        objects = make.ObjectStore()
        store = StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out")
        _fill(store, make)
        compact(store, make.DIGEST, 0, 1)
        _redo(store, make)
        objects.fail_at = len(objects.changes) + i
        with pytest.raises(OSError, match="killed"):
            compact(store, make.DIGEST, 0, 1)
        objects.fail_at = None
        done = find_done(store, make.DIGEST)
        assert len(done) == 7
        compact(store, make.DIGEST, 0, 1)
        assert _contents(store) == expected, i


def test_killed_at_any_change_of_a_local_folder(
    tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, limit: int) -> StorageFolder:
        store = resolve(str(tmp_path / folder))
        _fill(store, make)
        steps = itertools.count()

        def killed_in_time(real: Callable[..., None], *args: Any) -> None:
            if next(steps) >= limit:
                raise ConnectionError("killed")
            real(*args)

        with monkeypatch.context() as patch:
            for name in ("_write_local", "delete"):
                patch.setattr(atomic, name, partial(killed_in_time, getattr(atomic, name)))
            with contextlib.suppress(OSError):
                compact(store, make.DIGEST, 0, 1)
        return store

    expected = _contents(run("undisturbed", 10_000))
    for limit in range(11):
        store = run(f"killed{limit}", limit)
        compact(store, make.DIGEST, 0, 1)
        assert _contents(store) == expected, limit
        assert list_parts(store, make.DIGEST) == []


def test_a_damaged_shard_is_named_and_not_merged(store: StorageFolder, make: SimpleNamespace) -> None:
    _fill(store, make)
    compact(store, make.DIGEST, 0, 1)
    data = store.read(shard_name(0))
    assert data is not None
    store.write(shard_name(0), data[:100] + bytes([data[100] ^ 1]) + data[101:])
    _redo(store, make)
    with pytest.raises(IdcError, match=r"shards/part-00000\.parquet is damaged.*another checksum"):
        compact(store, make.DIGEST, 0, 1)
    with pytest.raises(IdcError, match=r"part-00000\.parquet is damaged"):
        check_shards(store)
    assert len(list_parts(store, make.DIGEST)) == 3


def test_another_shard_count_or_digest_is_refused(store: StorageFolder, make: SimpleNamespace) -> None:
    """Resumed with another count, the images of a shard would be searched in the wrong range."""
    _fill(store, make)
    compact(store, make.DIGEST, 0, 1)
    with pytest.raises(IdcError, match="one of 1 with digest d1; expected 2 with d1"):
        compact(store, make.DIGEST, 0, 2)


def test_a_stale_manifest_is_gone_before_a_shard_changes(make: SimpleNamespace) -> None:
    objects = make.ObjectStore()
    store = StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out")
    _fill(store, make)
    compact(store, make.DIGEST, 0, 1)
    write_manifest(store, make.DIGEST, 24, {})
    _redo(store, make)
    objects.changes.clear()
    compact(store, make.DIGEST, 0, 1)
    names = [f"{what} {path.removeprefix('bucket/out/')}" for what, path in objects.changes]
    assert names[:4] == [
        "delete manifest.json", f"write {pending_name(0)}", f"write {shard_name(0)}", f"write {index_name(0)}",
    ]  # fmt: skip
    assert names.count(f"write {shard_name(0)}") == 1 and names[-1] == f"delete {pending_name(0)}"
    assert read_manifest(store) is None


def test_rows_without_a_record_are_an_error(store: StorageFolder, make: SimpleNamespace) -> None:
    """Killed before the index, then the parts taken away by hand: the shard has rows of images that are in no index."""
    _fill(store, make)
    compact(store, make.DIGEST, 0, 1)
    whole = index.read_index(store, 0)
    assert whole is not None
    index.write_pending(store, 0, [whole.info.fingerprint])
    store.delete(index_name(0))
    make.commit(store, SOURCES[1], tiles=1)
    with pytest.raises(IdcError, match="not in its index"):
        compact(store, make.DIGEST, 0, 1)


def test_arrow_holds_a_few_parts_and_a_row_group_not_the_whole_shard(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts at once, and a sorted copy of them, would be twice the shard."""
    store = StorageFolder(make.PyFileSystem(make.ObjectStore()), "bucket/out", "mock://bucket/out")
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 2**20)
    png = bytes(range(256)) * 128  # 32 KiB
    for i in range(300):
        commit_part(store, make.DIGEST, [(make.record(f"{i}.png", 1), make.rows(f"{i}.png", 1, lr=png, hr=png))])
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        info = compact(store, make.DIGEST, 0, 1)
    finally:
        pa.set_memory_pool(usual)
    assert info is not None and info.bytes > 300 * 2 * len(png)
    assert pool.max_memory() < info.bytes / 2


def test_counted_attempts_outlive_a_compaction(store: StorageFolder, make: SimpleNamespace) -> None:
    """A later attempt must still see them."""
    count_attempt(store, make.image_id("bad.png"), "worker", "t1")
    _fill(store, make)
    compact(store, make.DIGEST, 0, 1)
    assert list_attempts(store)[make.image_id("bad.png")]["worker"] == 1
    assert not list_parts(store, make.DIGEST)
