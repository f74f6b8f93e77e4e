"""The list of images that a job works on: one row per image, sorted by source, as an Arrow table.

A table, not a list of objects: a million images are about 150 MB of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow.fs import FileInfo

from idc_ray.columns import schema_of
from idc_ray.errors import BadRequest


def image_id(source: str) -> str:
    """First 16 hex digits of the SHA-256 of ``source``, the image's relative POSIX path."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageRef:
    """Where one image is; a row of the manifest.

    Attributes:
        image_id: see :func:`image_id`.
        source: relative POSIX path; ``<relative path>#<row>`` for a row of a Parquet file, ``#<member>`` of an archive.
        path: path inside the filesystem, as ``idc_ray.images.names.stored`` writes it.
        size: bytes of the file or member, -1 when unknown (always for Parquet rows).
        mtime_ns: time of the file's last change in ns since 1970, -1 when unknown.
        lr_path: path of the paired low-resolution image, if the input is paired.
        row: row in the Parquet file, or byte in the archive where the member begins; -1 if the image is a file.
        column: column of the Parquet file that holds the images; of an archive, how the member is stored; else None.
    """

    image_id: str
    source: str
    path: str
    size: int
    mtime_ns: int
    lr_path: str | None
    row: int
    column: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ImageRef:
        """From a manifest row; columns that are no field (a pipeline may add some) are left out.

        Raises:
            KeyError: a column of the manifest is missing.
        """
        return cls(**{name: row[name] for name in MANIFEST_SCHEMA.names})


MANIFEST_SCHEMA = schema_of(ImageRef)


class Entry(NamedTuple):
    """An image as a listing finds it: a manifest row without its id."""

    source: str
    path: str
    size: int = -1
    mtime_ns: int = -1
    lr_path: str | None = None
    row: int = -1
    column: str | None = None

    @classmethod
    def of(cls, source: str, path: str, info: FileInfo) -> Entry:
        """A file with the size and time that its file system knows."""
        size, mtime = (-1 if known is None else known for known in (info.size, info.mtime_ns))
        return cls(source, path, size, mtime)


def build_manifest(entries: Iterable[Entry]) -> pa.Table:
    """The manifest of ``entries``: sorted by source, so the same images in any order give the same table.

    Two files may have one source: a name that is no UTF-8, and one that is spelled as that is shown. The second in the
    order of paths is given ``~2``.

    Raises:
        BadRequest: two entries share an id. Merging them would lose an image silently, and listings
            have already merged a path that was named twice.
    """
    ordered = _distinct(sorted(entries, key=itemgetter(0, 1)))
    ids = [image_id(entry.source) for entry in ordered]
    _check_unique(ids, ordered)
    # Column by column: all at once would be a second copy of a million entries.
    table = pa.table([pa.array(ids, pa.string())], ["image_id"])
    del ids
    for index, name in enumerate(Entry._fields):
        field = MANIFEST_SCHEMA.field(name)
        table = table.append_column(field, pa.array([entry[index] for entry in ordered], field.type))
    return table


def _distinct(ordered: list[Entry]) -> list[Entry]:
    sources = {entry.source for entry in ordered}
    if len(sources) == len(ordered):
        return ordered
    seen: set[str] = set()
    distinct: list[Entry] = []
    for entry in ordered:
        source, number = entry.source, 2
        while source in seen or (source != entry.source and source in sources):
            source, number = f"{entry.source}~{number}", number + 1
        seen.add(source)
        distinct.append(entry._replace(source=source))
    return sorted(distinct, key=itemgetter(0))


def _check_unique(ids: list[str], entries: list[Entry]) -> None:
    if len(set(ids)) == len(ids):
        return
    pairs = sorted((each, entry.source) for each, entry in zip(ids, entries, strict=True))
    (a, first), (_, second) = next((x, y) for x, y in pairwise(pairs) if x[0] == y[0])
    raise BadRequest(f"two images have the id {a}: {first!r} and {second!r}; rename one of them")
