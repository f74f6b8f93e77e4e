from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idc_ray.store import shards
from idc_ray.store.schema import table_from_rows
from idc_ray.store.shards import merge, shard_bytes


def test_bytes_depend_on_the_rows_not_on_how_they_came(make: SimpleNamespace) -> None:
    """Cut image by image or all at once, freshly made or read back from a shard: the same file."""
    names = sorted((f"{i}.png" for i in range(40)), key=make.image_id)
    tables = [table_from_rows(make.rows(name, 13, shade=i)) for i, name in enumerate(names)]
    once = shard_bytes(tables)
    whole = pa.concat_tables(tables)
    assert shard_bytes([whole]) == once
    assert shard_bytes([whole.slice(0, 300), whole.slice(300)]) == once
    assert shard_bytes([whole.combine_chunks()]) == once
    assert shard_bytes(merge(pq.ParquetFile(pa.BufferReader(once)), [])) == once
    assert pq.read_table(pa.BufferReader(once)).equals(whole)


def test_row_groups_have_256_rows(make: SimpleNamespace) -> None:
    tables = [table_from_rows(make.rows(f"{i}.png", 100)) for i in range(6)]
    metadata = pq.read_metadata(pa.BufferReader(shard_bytes(tables)))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [256, 256, 88]


def test_row_groups_of_large_tiles_are_cut_by_bytes(make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 tiles of 10 MB would pass Arrow's 2 GB limit for a column."""
    table = table_from_rows(make.rows("a.png", 10))
    row = sum(len(make.rows("a.png", 1)[0].lr) for _ in range(2))
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 4 * row + row // 2)
    metadata = pq.read_metadata(pa.BufferReader(shard_bytes([table])))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 2]
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 1)  # a single tile above the limit still gets in
    assert pq.read_metadata(pa.BufferReader(shard_bytes([table]))).num_row_groups == 10


def test_merge_keeps_order_and_replaces_images_also_across_row_groups(make: SimpleNamespace) -> None:
    names = sorted((f"{i}.png" for i in range(5)), key=make.image_id)
    old = shard_bytes([table_from_rows(make.rows(name, 150)) for name in names[:4]])
    counts = {names[1]: 3, names[2]: 0, names[4]: 3}  # one is redone, and now without tiles
    new = [(make.image_id(name), table_from_rows(make.rows(name, n, shade=9))) for name, n in counts.items()]
    merged = pa.concat_tables(merge(pq.ParquetFile(pa.BufferReader(old)), new))
    ids = merged["image_id"].to_pylist()
    expected = [(names[0], 150), (names[1], 3), (names[3], 150), (names[4], 3)]
    assert ids == [make.image_id(name) for name, count in expected for _ in range(count)]
    assert merged["tile_index"].to_pylist() == [i for _, count in expected for i in range(count)]


def test_a_shard_without_rows_can_be_read(make: SimpleNamespace) -> None:
    table = pq.read_table(pa.BufferReader(shard_bytes([])))
    assert table.num_rows == 0 and "lr" in table.column_names
