"""Record of a finished image, also of one without tiles."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa

from idc_ray.columns import Int32, schema_of
from idc_ray.store.layout import check_image_id

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ImageRecord:
    """One finished image.

    Args:
        image_id: first 16 hex digits of sha256 of the source's relative POSIX path.
        source: that path.
        source_bytes: size of the source file.
        source_mtime_ns: its modification time, nanoseconds since 1970; 0 where the source has none.
        source_sha256: its content's sha256, 64 hex digits.
        lr_height: LR rows.
        lr_width: LR columns.
        candidate_tiles: number of whole tiles in the image.
        tiles: number of its tiles, possibly 0.
        kept_start: whether the initial tiles were kept; None if nothing was optimised.
        loss_start: held-out loss before optimisation; None without one.
        loss_end: the same afterwards.
        bandwidth_loss_start: the same per bandwidth; empty without one.
        bandwidth_loss_end: likewise.
        seconds: time per stage. Never part of a shard: its bytes depend on its rows only.
        device: kind of device that condensed it.
        color_profile: name of the ICC profile that the image was converted to sRGB from, or ``ignored: ...``.
        degradation: the steps that made the LR image, with their parameters, as JSON; None for bicubic.
    """

    image_id: str
    source: str
    source_bytes: int
    source_mtime_ns: int
    source_sha256: str
    lr_height: Int32
    lr_width: Int32
    candidate_tiles: Int32
    tiles: Int32
    kept_start: bool | None
    loss_start: float | None
    loss_end: float | None
    bandwidth_loss_start: list[float]
    bandwidth_loss_end: list[float]
    seconds: dict[str, float]
    device: str
    color_profile: str | None = None
    degradation: str | None = None

    def __post_init__(self) -> None:
        check_image_id(self.image_id)
        if _SHA256.fullmatch(self.source_sha256) is None:
            raise ValueError(f"source_sha256 of {self.source} is {self.source_sha256!r}; expected 64 hex digits")
        losses = [self.loss_start, self.loss_end, *self.bandwidth_loss_start, *self.bandwidth_loss_end]
        for loss in losses:
            if loss is not None and not math.isfinite(loss):  # a NaN that is stored is a NaN in every mean after it
                raise ValueError(f"a loss of {self.source} is {loss}; expected finite numbers or None")


INDEX_SCHEMA = schema_of(ImageRecord)


def table_from_records(records: Iterable[ImageRecord]) -> pa.Table:
    """A table of `INDEX_SCHEMA`, sorted by image id: the same records give the same table."""
    rows = []
    for record in sorted(records, key=lambda record: record.image_id):
        rows.append({**asdict(record), "seconds": sorted(record.seconds.items())})
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def records_from_table(table: pa.Table) -> Iterator[ImageRecord]:
    """The records of an index."""
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            yield ImageRecord(**{**row, "seconds": dict(row["seconds"])})
