from __future__ import annotations

from types import SimpleNamespace

import pytest

from idc_ray.errors import IdcError
from idc_ray.store import Store
from idc_ray.store.index import Fingerprint, read_index, read_pending, write_pending
from idc_ray.store.layout import index_name, shard_name


@pytest.fixture
def filled(store: Store, make: SimpleNamespace) -> Store:
    for i in range(4):
        make.commit(store, f"{i}.png", tiles=1)
    for shard in range(2):
        store.compact(make.DIGEST, shard, 2)
    assert store.place.files("shards") == ["part-00000.parquet", "part-00001.parquet"]
    return store


def test_index_states_the_shard_and_every_image(filled: Store, make: SimpleNamespace) -> None:
    table = filled.index_table()
    assert sorted(table["source"].to_pylist()) == [f"{i}.png" for i in range(4)]
    entry = read_index(filled.place, 1)
    assert entry is not None and entry.info.file == shard_name(1) and entry.info.shard_count == 2
    assert entry.info.bytes == filled.place.size(shard_name(1))
    assert filled.index_table(["tiles"]).column_names == ["tiles"]


def test_an_output_without_shards_has_an_empty_index(store: Store) -> None:
    assert store.index_table().num_rows == 0 and store.index_table(["tiles"]).column_names == ["tiles"]
    assert store.check_shards() == []


@pytest.mark.parametrize("full", [True, False])
def test_truncated_shard_is_named(filled: Store, make: SimpleNamespace, full: bool) -> None:
    data = filled.place.read(shard_name(1))
    assert data is not None
    filled.place.write(shard_name(1), data[:-1])
    with pytest.raises(IdcError, match=r"shards/part-00001\.parquet is damaged: .*another size.*--overwrite"):
        filled.check_shards(full)
    with pytest.raises(IdcError, match=r"part-00001\.parquet is damaged"):
        filled.done(make.DIGEST)


def test_index_without_its_shard_is_named(filled: Store, make: SimpleNamespace) -> None:
    filled.place.delete(shard_name(0))
    for check in (filled.check_shards, lambda: filled.done(make.DIGEST)):
        with pytest.raises(IdcError, match=r"shards/part-00000\.parquet is missing, but .*index/part-00000\.parquet"):
            check()


def test_shard_without_its_index_is_named(filled: Store) -> None:
    filled.place.delete(index_name(0))
    with pytest.raises(IdcError, match=r"shards/part-00000\.parquet has no entry .*index/part-00000\.parquet"):
        filled.check_shards()


def test_torn_index_is_named(filled: Store) -> None:
    data = filled.place.read(index_name(0))
    assert data is not None
    filled.place.write(index_name(0), data[: len(data) // 2])
    with pytest.raises(IdcError, match=r"index/part-00000\.parquet is not a whole index"):
        filled.check_shards()


def test_all_faults_are_counted_in_one_message(filled: Store) -> None:
    filled.place.delete(shard_name(0))
    filled.place.delete(shard_name(1))
    with pytest.raises(IdcError, match=r"(?s)part-00000\.parquet is missing.*part-00001\.parquet is missing"):
        filled.check_shards()


def test_pending_note_survives(store: Store) -> None:
    assert read_pending(store.place, 3) is None
    allowed = [Fingerprint(12, "ab" * 32), Fingerprint(15, "cd" * 32)]
    write_pending(store.place, 3, allowed)
    assert read_pending(store.place, 3) == allowed and store.pending_shards() == [3]
