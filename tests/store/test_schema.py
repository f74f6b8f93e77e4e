from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.schema import ROW_SCHEMA, TileRow, rows_from_table, table_from_rows


def test_every_field_survives_a_round_trip_also_those_without_a_value(make: SimpleNamespace) -> None:
    rows = make.rows("a.png", 2) + make.rows("b.png", 1, top=None, loss_start=None, loss_end=None, kept_start=None)
    table = table_from_rows(rows)
    assert table.schema == ROW_SCHEMA and rows_from_table(table) == rows
    assert rows_from_table(table_from_rows([])) == []


def test_columns_and_row_fields_are_the_same_list() -> None:
    assert ROW_SCHEMA.names == [field.name for field in dataclasses.fields(TileRow)]


def _compact_two(store: StorageFolder, make: SimpleNamespace) -> Path:
    make.commit(store, "a.png", 2, shade=10)
    make.commit(store, "b.png", 1, shade=77)
    make.commit(store, "empty.png", 0)
    for shard in range(2):
        compact(store, make.DIGEST, shard, 2)
    return Path(store.root) / "shards"


def test_plain_pyarrow_reads_the_shards_and_pngs_are_stored_as_they_are(tmp_path: Path, make: SimpleNamespace) -> None:
    folder = _compact_two(resolve(str(tmp_path)), make)
    table = pq.read_table(folder)
    expected = {(row.image_id, row.tile_index): row.lr for row in make.rows("a.png", 2, 10) + make.rows("b.png", 1, 77)}
    found = {(row["image_id"], row["tile_index"]): row["lr"]["bytes"] for row in table.to_pylist()}
    assert found == expected

    file = pq.ParquetFile(sorted(folder.glob("*.parquet"))[0])
    columns = {file.metadata.row_group(0).column(i).path_in_schema: i for i in range(file.metadata.num_columns)}
    png = file.metadata.row_group(0).column(columns["hr.bytes"])
    assert png.compression == "UNCOMPRESSED" and png.statistics is None and not png.has_dictionary_page
    assert file.metadata.row_group(0).column(columns["image_id"]).has_dictionary_page


def test_hugging_face_datasets_shows_pictures(
    tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    folder = _compact_two(resolve(str(tmp_path / "out")), make)
    files = sorted(str(path) for path in folder.glob("*.parquet"))
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(data.features["lr"], datasets.Image) and isinstance(data.features["hr"], datasets.Image)
    row = next(row for row in data if row["source"] == "b.png")
    assert row["lr"].size == (2, 2) and row["lr"].getpixel((0, 0)) == 77 and row["hr"].getpixel((0, 0)) == 78
    assert row["left"] is None and row["sample_weight"] == 1.0
    assert len(data) == 3


def test_unpacked_pairs_have_the_same_name_and_no_two_tiles_share_one(make: SimpleNamespace) -> None:
    rows = table_from_rows(make.rows("x/a.png", 3) + make.rows("y/a.png", 3)).to_pylist()
    assert all(row["lr"]["path"] == row["hr"]["path"] for row in rows)
    assert len({row["lr"]["path"] for row in rows}) == 6


def test_schema_types_are_those_of_the_format() -> None:
    """Readers of old outputs depend on them."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert ROW_SCHEMA.field("lr").type == image == ROW_SCHEMA.field("hr").type
    assert ROW_SCHEMA.field("tile_index").type == pa.int32() and ROW_SCHEMA.field("source_bytes").type == pa.int64()
