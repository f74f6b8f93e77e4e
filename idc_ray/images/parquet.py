"""Images in the rows of Parquet files, as Hugging Face ``datasets`` writes them or as plain binary columns."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.images.manifest import Entry
from idc_ray.images.names import open_path

#: Bytes of a file for each row that it states; the smallest PNG has 67, and compresses to half of that.
LEAST_BYTES = 16


def image_columns(schema: pa.Schema) -> list[str]:
    """Columns that may hold images: binary, or a struct with a binary field ``bytes`` (Hugging Face's ``Image``)."""
    return [field.name for field in schema if _is_binary(field.type) or _bytes_field(field.type)]


def _is_binary(kind: pa.DataType) -> bool:
    # No extension types: Ray registers one whose values are unpickled when they are read.
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _bytes_field(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and any(f.name == "bytes" and _is_binary(f.type) for f in kind))


def row_entries(files: Iterable[Entry], filesystem: fs.FileSystem, column: str | None) -> Iterator[Entry]:
    """One entry per row of each Parquet file; only footers are read.

    Args:
        files: the Parquet files.
        filesystem: where they are.
        column: the column with the images; None if each file has just one candidate.

    Raises:
        BadRequest: a file cannot be read, or its image column is ambiguous; the message lists the candidates.
    """
    for file in files:
        try:
            with open_path(filesystem, file.path) as handle, pq.ParquetFile(handle) as parquet:
                rows, schema, size = parquet.metadata.num_rows, parquet.schema_arrow, handle.seek(0, 2)
        except (OSError, pa.ArrowException, TypeError, ValueError) as error:  # the last two: forged extension types
            raise BadRequest(f"cannot read {file.source!r} as Parquet: {error}; repair or remove it") from error
        if rows * LEAST_BYTES > size:
            raise BadRequest(
                f"{file.source!r} states {rows:,} rows in {size:,} bytes, which cannot be images; remove it"
            )
        chosen = _choose(schema, column, file.source)
        for row in range(rows):
            yield Entry(f"{file.source}#{row}", file.path, -1, file.mtime_ns, None, row, chosen)


def _choose(schema: pa.Schema, column: str | None, source: str) -> str:
    candidates = image_columns(schema)
    listed = ", ".join(map(repr, candidates)) or "none"
    if column is not None and column not in candidates:
        raise BadRequest(f"{source!r} has no image column {column!r}; columns that may have images: {listed}")
    if column is None and len(candidates) != 1:
        fix = "choose one with image_column" if candidates else f"its columns are {', '.join(map(repr, schema.names))}"
        raise BadRequest(f"{source!r} has {len(candidates)} columns that may have images ({listed}); {fix}")
    chosen = column or candidates[0]
    if schema.names.count(chosen) > 1 or f"{chosen}.bytes" in schema.names:
        raise BadRequest(
            f"{source!r} has several columns named {chosen!r} or {chosen + '.bytes'!r}; rename all but one"
        )
    return chosen


def read_row(filesystem: fs.FileSystem, path: str, column: str, row: int) -> bytes:
    """The encoded image in one row.

    The file's image column is never in memory as a whole: the row's group is streamed page by page up to the row. How
    much a page holds is the writer's choice; pyarrow and ``datasets`` put up to 1,024 rows of a group into one, so
    count with one row group (``datasets``: 100 images). Time: that of half a row group on average.

    Raises:
        RejectedImage: ``missing``: the file has no such row any more, or the row holds no bytes.
        OSError, pyarrow.ArrowException: the file cannot be read.
    """
    with _opened(filesystem, path) as parquet:
        group, offset = _group_of(parquet.metadata, row)
        for batch in _batches(parquet, column, 1, [group]):
            if offset == 0:
                return _value(batch.column(0)[0].as_py(), row)
            offset -= 1
    raise RejectedImage("missing", f"row {row} is no longer in the file")


def row_digests(filesystem: fs.FileSystem, path: str, column: str) -> list[str | None]:
    """SHA-256 of the image in each row, None where there is none; as far as the file can be read."""
    digests: list[str | None] = []
    with contextlib.suppress(OSError, pa.ArrowException, KeyError, RejectedImage), _opened(filesystem, path) as parquet:
        for batch in _batches(parquet, column, 16, range(parquet.metadata.num_row_groups)):
            for cell in batch.column(0):
                value = cell.as_py()
                data = value["bytes"] if isinstance(value, dict) else value
                digests.append(None if data is None else hashlib.sha256(data).hexdigest())
    return digests


@contextlib.contextmanager
def _opened(filesystem: fs.FileSystem, path: str) -> Iterator[pq.ParquetFile]:
    # buffer_size makes the reader stream pages; with pre_buffer it would fetch the whole column chunk first.
    with (
        open_path(filesystem, path) as handle,
        pq.ParquetFile(handle, pre_buffer=False, buffer_size=1 << 20) as parquet,
    ):
        yield parquet


def _batches(parquet: pq.ParquetFile, column: str, rows: int, groups: Iterable[int]) -> Iterator[pa.RecordBatch]:
    """The images of some row groups, as one column of plain bytes."""
    leaf = f"{column}.bytes" if _bytes_field(parquet.schema_arrow.field(column).type) else column
    for batch in parquet.iter_batches(batch_size=rows, row_groups=list(groups), columns=[leaf], use_threads=False):
        _check_plain(batch.schema)
        yield batch


def _group_of(metadata: pq.FileMetaData, row: int) -> tuple[int, int]:
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < rows:
            return group, row
        row -= rows
    raise RejectedImage("missing", f"the file has {metadata.num_rows} rows, fewer than when it was listed")


def _check_plain(schema: pa.Schema) -> None:
    """Columns are chosen by name, of which a forged file may have several; only columns of bytes may be read."""
    kinds = [field.type for field in schema]
    if len(kinds) == 1 and pa.types.is_struct(kinds[0]):
        kinds = [field.type for field in kinds[0]]
    if len(kinds) != 1 or not _is_binary(kinds[0]):
        raise RejectedImage("unreadable", f"the column is {', '.join(map(str, kinds))} now; expected one of binary")


def _value(cell: bytes | dict[str, bytes | None] | None, row: int) -> bytes:
    data = cell["bytes"] if isinstance(cell, dict) else cell
    if data is None:
        raise RejectedImage("missing", f"row {row} has no image bytes (paths are not followed)")
    return data
