from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.images.manifest import Entry
from idc_ray.images.parquet import image_columns, read_row, row_entries
from tests.unpickling import pickled, ran, registered

LOCAL = fs.LocalFileSystem()


def structs(*values: bytes | None) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": value, "path": "x.png"} for value in values], kind)


def write(folder: Path, name: str = "a.parquet", row_group_size: int | None = None, **columns: pa.Array) -> Entry:
    pq.write_table(pa.table(columns), folder / name, row_group_size=row_group_size)
    return Entry(name, str(folder / name), 1, 2)


def test_candidates_are_binary_columns_and_structs_with_bytes() -> None:
    schema = pa.schema(
        [
            ("id", pa.string()), ("n", pa.int64()), ("raw", pa.binary()), ("large", pa.large_binary()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("words", pa.struct([("bytes", pa.string())])), ("other", pa.struct([("path", pa.binary())])),
        ]
    )  # fmt: skip
    assert image_columns(schema) == ["raw", "large", "image"]


def test_every_row_of_every_file_has_a_source_of_its_own(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "a.parquet", image=structs(b"1", b"2"), label=pa.array([1, 2])),
        write(tmp_path, "b.parquet", image=structs(b"3")),
    ]
    found = list(row_entries(files, LOCAL, None))
    assert [(e.source, e.row, e.column, e.mtime_ns) for e in found] == [
        ("a.parquet#0", 0, "image", 2), ("a.parquet#1", 1, "image", 2), ("b.parquet#0", 0, "image", 2),
    ]  # fmt: skip


def test_the_only_candidate_is_found_and_others_are_named(tmp_path: Path) -> None:
    one = write(tmp_path, "one.parquet", raw=pa.array([b"1"]))
    two = write(tmp_path, "two.parquet", lr=structs(b"1"), hr=structs(b"2"), n=pa.array([1]))
    none = write(tmp_path, "none.parquet", n=pa.array([1]))
    assert next(row_entries([one], LOCAL, None)).column == "raw"
    assert next(row_entries([two], LOCAL, "hr")).column == "hr"
    with pytest.raises(BadRequest, match=r"2 columns .*'lr', 'hr'.*image_column"):
        list(row_entries([two], LOCAL, None))
    with pytest.raises(BadRequest, match=r"no image column 'n'.*'lr', 'hr'"):
        list(row_entries([two], LOCAL, "n"))
    with pytest.raises(BadRequest, match="its columns are 'n'"):
        list(row_entries([none], LOCAL, None))


def test_rows_that_cannot_be_images_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    """Catches 7 kB of 3 million null rows, which cost 28 s and 2.5 GB."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    file = write(tmp_path, image=pa.nulls(1_000_000, kind))
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(BadRequest, match="1,000,000 rows in .* bytes, which cannot be images"):
        list(row_entries([file], LOCAL, None))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_null_rows_among_images_are_listed(tmp_path: Path) -> None:
    """Reading one of them says so; the others are used."""
    file = write(tmp_path, image=structs(*[bytes(100)] * 5, *[None] * 5))
    assert len(list(row_entries([file], LOCAL, None))) == 10


def test_a_file_that_is_no_parquet_is_a_bad_request(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadRequest, match=r"cannot read 'a\.parquet'"):
        list(row_entries([Entry("a.parquet", str(tmp_path / "a.parquet"))], LOCAL, None))


@pytest.mark.parametrize("row_group_size", [1, 3, 10])
@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_rows_are_read_from_any_group(tmp_path: Path, row_group_size: int, kind: str) -> None:
    """Catches rows counted from the start of a group or of the file, the wrong way round; and a column before it."""
    values = [f"image {i}".encode() for i in range(10)]
    column = structs(*values) if kind == "struct" else pa.array(values, kind)
    file = write(tmp_path, row_group_size=row_group_size, first=pa.array(range(10)), image=column)
    assert [read_row(LOCAL, file.path, "image", row) for row in range(10)] == values


def test_a_row_that_is_gone_or_empty_is_missing(tmp_path: Path) -> None:
    file = write(tmp_path, image=structs(b"1", None), raw=pa.array([None, b"2"], pa.binary()))
    for column, row in (("image", 2), ("image", 1), ("raw", 0)):
        with pytest.raises(RejectedImage) as caught:
            read_row(LOCAL, file.path, column, row)
        assert caught.value.code == "missing"


@pytest.mark.parametrize("row", [0, 30])
@pytest.mark.parametrize(("options", "limit_mib"), [({"row_group_size": 4}, 8), ({"write_batch_size": 1}, 5)])
def test_one_row_costs_at_most_a_row_group_or_a_page(
    tmp_path: Path, row: int, options: dict[str, int], limit_mib: int
) -> None:
    """Catches the whole column in memory, here 32 MiB, and the whole row group where pages are smaller."""
    rng = np.random.default_rng(0)
    values = [rng.bytes(1 << 20) for _ in range(32)]
    pq.write_table(pa.table({"image": structs(*values)}), tmp_path / "a.parquet", **options)
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        assert read_row(LOCAL, str(tmp_path / "a.parquet"), "image", row) == values[row]
    finally:
        pa.set_memory_pool(default)
    assert 1 << 20 <= pool.max_memory() < limit_mib << 20


@pytest.mark.parametrize("names", [["image", "image"], ["image.bytes", "image"]])
def test_no_column_of_pickles_is_read(tmp_path: Path, names: list[str]) -> None:
    """Catches a column chosen by name where a forged file has two of it: reading the other one runs its code."""
    good = structs(b"1") if names[0] != names[1] else pa.array([b"1"])
    with registered():
        pickled()[0].as_py()
        assert ran.pop() == "ran"  # so it would be
        pq.write_table(pa.Table.from_arrays([pickled(), good], names), tmp_path / "x.parquet")
        file = Entry("x.parquet", str(tmp_path / "x.parquet"))
        with pytest.raises(BadRequest, match="several columns named 'image'"):
            list(row_entries([file], LOCAL, None))
        with pytest.raises((RejectedImage, KeyError)):  # exchanged after it was listed
            read_row(LOCAL, file.path, "image", 0)
        assert not ran


def test_a_column_of_pickles_next_to_the_images_is_not_read(tmp_path: Path) -> None:
    """Ray Data writes such columns for mixed values: the images of such a file are as good as any."""
    with registered():
        pq.write_table(pa.table({"image": structs(b"1"), "notes": pickled()}), tmp_path / "x.parquet")
        (entry,) = row_entries([Entry("x.parquet", str(tmp_path / "x.parquet"))], LOCAL, None)
        assert read_row(LOCAL, entry.path, "image", 0) == b"1"
        assert not ran


def test_an_image_field_of_pickles_is_refused(tmp_path: Path) -> None:
    with registered():
        column = pa.StructArray.from_arrays([pickled(), pa.array([b"1"])], ["bytes", "bytes"])
        pq.write_table(pa.table({"image": column}), tmp_path / "x.parquet")
        with pytest.raises((BadRequest, RejectedImage)):
            read_row(LOCAL, str(tmp_path / "x.parquet"), "image", 0)
        assert not ran
