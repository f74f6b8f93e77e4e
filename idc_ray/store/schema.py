"""One row per tile: the columns that every Parquet reader sees, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from idc_ray.columns import Int32, schema_of

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the Image feature of Hugging Face datasets
_PNG_COLUMNS = ("lr.bytes", "hr.bytes")
_REPEATING = ("image_id", "source", "source_sha256", "method", "labels", "config_digest")

Png = Annotated[bytes, _IMAGE]


@dataclass(frozen=True, slots=True)
class TileRow:
    """One tile of the condensed training set.

    Args:
        image_id: first 16 hex digits of sha256 of the source's relative POSIX path.
        source: that path.
        source_bytes: size of the source file.
        source_sha256: its content's sha256, 64 hex digits.
        tile_index: 0, 1, … within the image.
        top: LR row, in pixels, of the chosen crop or of the start; None where the tile has none.
        left: LR column, likewise.
        lr: the LR tile, a PNG; None in sets of HR tiles only.
        hr: the HR tile, a PNG of ``scale`` times the sides; None in sets of LR tiles only.
        scale: integer factor.
        method: what chose or made the tile, such as ``idc``.
        labels: where HR comes from, ``teacher`` or ``real``; None without HR.
        sample_weight: how often training draws the tile, relative to the others; 1 is usual.
        loss_start: held-out loss of the image before optimisation, None for methods without one.
        loss_end: the same afterwards.
        kept_start: True if the start was kept because optimisation did not better it; None if nothing was optimised.
        config_digest: digest of the settings that affect the result.
    """

    image_id: str
    source: str
    source_bytes: int
    source_sha256: str
    tile_index: Int32
    top: Int32 | None
    left: Int32 | None
    lr: Png | None
    hr: Png | None
    scale: Int32
    method: str
    labels: str | None
    sample_weight: float
    loss_start: float | None
    loss_end: float | None
    kept_start: bool | None
    config_digest: str


_COLUMNS = schema_of(TileRow)
_PLAIN = tuple(field.name for field in _COLUMNS if field.type != _IMAGE and field.name not in _REPEATING)


def table_from_rows(rows: Sequence[TileRow]) -> pa.Table:
    """A table of `ROW_SCHEMA`. Both PNGs of a tile get the same path: tools that unpack them pair by name."""
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in ROW_SCHEMA.names}
    paths = [f"{row.image_id}_{row.tile_index:04d}.png" for row in rows]
    for name in ("lr", "hr"):
        pngs = zip(columns[name], paths, strict=True)
        columns[name] = [None if png is None else {"bytes": png, "path": path} for png, path in pngs]
    return pa.Table.from_pydict(columns, schema=ROW_SCHEMA)


def check_types(schema: pa.Schema, expected: pa.Schema) -> None:
    """Reject files with other column types before any value is accessed.

    Arrow has extension types, and Ray registers one whose values are unpickled on access.

    Args:
        schema: schema of the file, or of the columns that were read.
        expected: the expected schema, with at least these columns.

    Raises:
        ValueError: a column is missing in ``expected``, there twice, or of another type.
    """
    for field in schema:
        index = expected.get_field_index(field.name)
        if index < 0 or schema.names.count(field.name) > 1 or expected.field(index).type != field.type:
            wanted = expected.field(index).type if index >= 0 else "no such column"
            raise ValueError(f"its column {field.name!r} is {field.type}; expected {wanted}, once")


def rows_from_table(table: pa.Table) -> list[TileRow]:
    """The rows of a part or shard."""
    rows = table.select(ROW_SCHEMA.names).to_pylist()
    return [TileRow(**{**row, **{name: row[name] and row[name]["bytes"] for name in ("lr", "hr")}}) for row in rows]


def open_writer(sink: pa.NativeFile | BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer whose bytes depend on the rows only.

    PNG does not compress further and never repeats: no codec, no dictionary, no statistics (a footer with minimum
    and maximum PNGs would be larger than some tiles). All else is small: snappy, which every reader has.
    """
    return pq.ParquetWriter(
        sink,
        schema,
        compression={**dict.fromkeys(_PNG_COLUMNS, "NONE"), **dict.fromkeys((*_REPEATING, *_PLAIN), "SNAPPY")},
        use_dictionary=list(_REPEATING),
        write_statistics=[*_REPEATING, *_PLAIN],
        data_page_version="1.0",
        version="2.6",
    )


def _hugging_face_metadata() -> bytes:
    """What makes `datasets.load_dataset("parquet")` show pictures instead of bytes."""
    names = {pa.float64(): "float64"}  # str() of that type is "double"
    features = {
        field.name: {"_type": "Image"}
        if field.type == _IMAGE
        else {"_type": "Value", "dtype": names.get(field.type, str(field.type))}
        for field in _COLUMNS
    }
    return json.dumps({"info": {"features": features}}).encode()


ROW_SCHEMA = _COLUMNS.with_metadata({b"huggingface": _hugging_face_metadata()})
