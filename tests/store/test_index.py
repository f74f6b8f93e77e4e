from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idc_ray.errors import IdcError
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import check_shards, list_pending, read_index, read_pending, write_pending
from idc_ray.store.layout import index_name, shard_name
from idc_ray.store.manifest import index_table
from idc_ray.store.shards import Fingerprint, read_shard
from tests.unpickling import pickled, ran, registered


@pytest.fixture
def filled(store: StorageFolder, make: SimpleNamespace) -> StorageFolder:
    for i in range(4):
        make.commit(store, f"{i}.png", tiles=1)
    for shard in range(2):
        compact(store, make.DIGEST, shard, 2)
    assert store.files("shards") == ["part-00000.parquet", "part-00001.parquet"]
    return store


def test_index_states_the_shard_and_every_image(filled: StorageFolder, make: SimpleNamespace) -> None:
    table = index_table(filled)
    assert sorted(table["source"].to_pylist()) == [f"{i}.png" for i in range(4)]
    entry = read_index(filled, 1)
    assert entry is not None and entry.info.file == shard_name(1) and entry.info.shard_count == 2
    assert entry.info.bytes == filled.size(shard_name(1))
    assert index_table(filled, ["tiles"]).column_names == ["tiles"]


def test_an_output_without_shards_has_an_empty_index(store: StorageFolder) -> None:
    assert index_table(store).num_rows == 0 and index_table(store, ["tiles"]).column_names == ["tiles"]
    assert check_shards(store) == []


@pytest.mark.parametrize("full", [True, False])
def test_truncated_shard_is_named(filled: StorageFolder, make: SimpleNamespace, full: bool) -> None:
    data = filled.read(shard_name(1))
    assert data is not None
    filled.write(shard_name(1), data[:-1])
    with pytest.raises(IdcError, match=r"shards/part-00001\.parquet is damaged: .*another size.*verify --repair"):
        check_shards(filled, full)
    with pytest.raises(IdcError, match=r"part-00001\.parquet is damaged"):
        find_done(filled, make.DIGEST)


def test_index_without_its_shard_is_named(filled: StorageFolder, make: SimpleNamespace) -> None:
    filled.delete(shard_name(0))
    for check in (lambda: check_shards(filled), lambda: find_done(filled, make.DIGEST)):
        with pytest.raises(IdcError, match=r"shards/part-00000\.parquet is missing, but .*index/part-00000\.parquet"):
            check()


def test_shard_without_its_index_is_named(filled: StorageFolder) -> None:
    filled.delete(index_name(0))
    with pytest.raises(IdcError, match=r"shards/part-00000\.parquet has no entry .*index/part-00000\.parquet"):
        check_shards(filled)


def test_torn_index_is_named(filled: StorageFolder) -> None:
    data = filled.read(index_name(0))
    assert data is not None
    filled.write(index_name(0), data[: len(data) // 2])
    with pytest.raises(IdcError, match=r"index/part-00000\.parquet is not a complete index"):
        check_shards(filled)


def test_all_faults_are_counted_in_one_message(filled: StorageFolder) -> None:
    filled.delete(shard_name(0))
    filled.delete(shard_name(1))
    with pytest.raises(IdcError, match=r"(?s)part-00000\.parquet is missing.*part-00001\.parquet is missing"):
        check_shards(filled)


def test_pending_note_survives(store: StorageFolder) -> None:
    assert read_pending(store, 3) is None
    allowed = [Fingerprint(12, "ab" * 32), Fingerprint(15, "cd" * 32)]
    write_pending(store, 3, allowed)
    assert read_pending(store, 3) == allowed and list_pending(store) == [3]


def forge(store: StorageFolder, name: str, column: str) -> None:
    """Puts a column of pickles in place of a regular one, as in a set from an untrusted source."""
    table = pq.read_table(pa.BufferReader(store.read(name)))
    forged = table.set_column(table.schema.get_field_index(column), column, pickled(table.num_rows))
    sink = pa.BufferOutputStream()
    pq.write_table(forged.replace_schema_metadata(table.schema.metadata), sink)
    store.write(name, sink.getvalue())


@pytest.mark.parametrize("column", ["image_id", "lr", "sample_weight"])
def test_no_value_of_a_forged_shard_is_read(filled: StorageFolder, column: str) -> None:
    """Catches code that runs because a foreign set was trained on or exported: Ray registers such a type."""
    with registered():
        forge(filled, shard_name(0), column)
        with pytest.raises(IdcError, match=rf"part-00000\.parquet cannot be read as a shard .*'{column}'"):
            read_shard(filled, 0)
        assert not ran


def test_no_value_of_a_forged_index_is_read(filled: StorageFolder, make: SimpleNamespace) -> None:
    with registered():
        forge(filled, index_name(0), "image_id")
        for read in (
            lambda: find_done(filled, make.DIGEST),
            lambda: index_table(filled),
            lambda: index_table(filled, ["image_id"]),
        ):
            with pytest.raises(IdcError, match="not a complete index|other columns"):
                read()
        assert not ran


def test_an_index_of_version_0_1_has_no_color_profiles_and_degradations(filled: StorageFolder) -> None:
    """Catches outputs of earlier versions that this one calls damaged."""
    data = filled.read(index_name(0))
    assert data is not None
    table = pq.read_table(pa.BufferReader(data)).drop_columns(["color_profile", "degradation"])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    filled.write(index_name(0), sink.getvalue())
    for columns in (None, ["source", "color_profile"]):
        entry = read_index(filled, 0, columns)
        assert entry is not None and entry.table["color_profile"].null_count == entry.table.num_rows > 0
