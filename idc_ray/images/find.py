"""Finds the images of an input: a folder, a glob, a list, an image, Parquet, archives; local or in an object store."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from idc_ray.errors import BadRequest
from idc_ray.images.archives import ARCHIVE_ENDINGS, member_entries
from idc_ray.images.listfile import read_list
from idc_ray.images.listing import has_wildcard, matches, split_pattern, walk
from idc_ray.images.manifest import Entry, build_manifest
from idc_ray.images.names import open_path, stored
from idc_ray.images.pairs import pair
from idc_ray.images.parquet import row_entries
from idc_ray.locate import StoragePath, holds, locate
from idc_ray.redact import redact_within

# What a folder is searched for; upper or lower case. What a file *is* is decided by its content when it is read.
IMAGE_ENDINGS = frozenset(
    ("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg", "jxl", "pgm", "png", "pnm", "ppm",
     "tif", "tiff", "webp")
)  # fmt: skip
LIST_ENDINGS = frozenset(("txt", "lst"))
_UNKNOWN = dict.fromkeys(("gz", "tgz", "xz", "zst", "7z", "rar"), "unpack it, and name the folder") | dict.fromkeys(
    ("arrow", "feather", "lance"), "save it as Parquet, such as by datasets.Dataset.to_parquet"
)
PARQUET_ENDINGS = frozenset(("parquet", "pq"))


@dataclass(frozen=True)
class ImageListing:
    """The images of an input.

    Attributes:
        manifest: one row per image, ``MANIFEST_SCHEMA``, sorted by source.
        filesystem: where the manifest's paths are; it pickles.
        uri: the input, absolute, without credentials.
        ignored: files that are no images by their ending (hidden files are not counted).
        lr_filesystem: where the manifest's ``lr_path`` are; None unless the input is paired.
        lr_uri: the LR folder, absolute, without credentials; None unless the input is paired.
        duplicates: what was left out as a copy of others, as ``run.json`` states it; None: not looked for.
    """

    manifest: pa.Table
    filesystem: fs.FileSystem
    uri: str
    ignored: int = 0
    lr_filesystem: fs.FileSystem | None = None
    lr_uri: str | None = None
    duplicates: dict[str, Any] | None = None

    def describe(self, *, lr_names: bool = False) -> list[object]:
        """What a digest names the images by, as JSON values: sources and sizes; of Parquet, the files' and the column.

        A change of content that keeps the size goes unseen.

        Args:
            lr_names: name LR partners by their files' names only, so that a folder that is moved is the same.
        """
        paired = ["lr_path"] if self.lr_uri is not None else []  # other LR images make another whole
        rows = self.manifest.select(["source", "size", *paired]).to_pylist()
        for row in rows if lr_names else ():
            if paired:
                row["lr_path"] = posixpath.basename(row["lr_path"])
        return [*rows, *self._parquet_files()]

    def _parquet_files(self) -> list[object]:
        """Source, size and column of each Parquet file, whose rows have no sizes."""
        is_row = pc.and_(pc.greater_equal(self.manifest["row"], 0), pc.less(self.manifest["size"], 0))
        rows = self.manifest.filter(is_row).select(["path", "source", "column"])
        files = {row["path"]: row for row in rows.to_pylist()}
        described: list[object] = []
        for path, row in files.items():
            with open_path(self.filesystem, path) as file:
                described.append([row["source"].rpartition("#")[0], file.seek(0, 2), row["column"]])
        return described


def find_images(
    input: str,
    *,
    lr_input: str | None = None,
    scale: int = 2,
    image_column: str | None = None,
    without: StoragePath | None = None,
) -> ImageListing:
    """Find the images of ``input``.

    - A folder: every image below it (hidden ones are skipped); if there are none, the rows of every Parquet file; if
      there are none either, the images in every archive. With ``image_column``, Parquet files are used in any case.
    - A pattern with ``*``, ``?``, ``[ab]`` or ``**`` that no file has as its name: of the files that match, the same.
      Names that begin with a dot match no wildcard.
    - ``.txt`` or ``.lst``: a list, see :func:`idc_ray.images.listfile.read_list`.
    - ``.parquet`` or ``.pq``: its rows. ``.tar`` (as WebDataset writes it) or ``.zip``: the images in it.
    - One image file.

    Sources are relative to the folder, to the pattern's leading part without wildcards, or to the file's folder, so
    that an image keeps its id when the input is moved. Nothing is decoded or checked here.

    Args:
        input: a local path or a URI that pyarrow knows (``s3://``, ``gs://``, ``file://``).
        lr_input: a folder with the low-resolution partners of ``input``'s files, see :func:`idc_ray.images.pairs.pair`.
        scale: scale of the pairs; used with ``lr_input`` only.
        image_column: the Parquet column with the images; None when there is one candidate.
        without: a folder that is not searched, such as the output where it lies in the input.

    Raises:
        BadRequest: the input is missing, has no images, or is of an unknown kind; the message has the fix.
    """
    storage = locate(input)
    files, ignored = _files(storage, image_column is not None, without)
    if files and _ending(files[0].source) in PARQUET_ENDINGS:
        if lr_input is not None:
            raise BadRequest(f"{storage.uri} is Parquet; lr_input needs image files, matched by name")
        files = list(row_entries(files, storage.filesystem, image_column))
    elif image_column is not None:
        raise BadRequest(f"image_column is {image_column!r}, but {storage.uri} has no Parquet files; leave it out")
    elif files and _ending(files[0].source) in ARCHIVE_ENDINGS:
        if lr_input is not None:
            raise BadRequest(f"{storage.uri} has archives; lr_input needs image files, matched by name: unpack them")
        members = list(member_entries(files, storage.filesystem))
        files = [entry for entry in members if _ending(entry.source) in IMAGE_ENDINGS]
        ignored += len(members) - len(files)
    if not files:
        endings = " ".join(sorted(IMAGE_ENDINGS | PARQUET_ENDINGS | ARCHIVE_ENDINGS))
        within = f"match the pattern {storage.path}" if _kind(storage) == fs.FileType.NotFound else f"in {storage.uri}"
        searched = f"no images {within}" + (
            f" outside {without.uri}" if without is not None and holds(_folder(storage), without) else ""
        )
        raise BadRequest(f"{searched}; {ignored} other files were ignored; supported are: {endings}")
    lr = None
    if lr_input is not None:
        lr = locate(lr_input)
        files = pair(files, _lr_files(lr, without), scale)
    return ImageListing(
        build_manifest(files),
        storage.filesystem,
        storage.uri,
        ignored,
        lr.filesystem if lr else None,
        lr.uri if lr else None,
    )


def check_exists(input: str) -> None:
    """Refuse a local input that does not exist, at no cost: before anything is imported that takes a while.

    Raises:
        BadRequest: it does not exist.
    """
    storage = locate(input)
    if storage.local and _kind(storage) == fs.FileType.NotFound:
        _searched(storage)


def _searched(storage: StoragePath) -> tuple[StoragePath, str]:
    """The folder and the pattern of what is not there by its own name.

    Raises:
        BadRequest: it is no pattern, or its folder does not exist.
    """
    if not has_wildcard(storage.path):
        raise BadRequest(
            f"{storage.uri} does not exist; give a folder, a glob, a list (.txt, .lst), an image, Parquet or an archive"
        )
    base, pattern = split_pattern(storage.path)
    folder = StoragePath(storage.filesystem, base, storage.uri)
    if _kind(folder) != fs.FileType.Directory:
        raise BadRequest(f"the folder {base!r} of the pattern {storage.uri} does not exist")
    return folder, pattern


def output_inside(input: str, output: str) -> StoragePath | None:
    """The output if it lies in the input, where what earlier launches wrote, such as pictures, is no input.

    On a disk also where it does not: a link in the input may lead to it.

    Raises:
        BadRequest: both are the same folder.
    """
    source, storage = locate(input), locate(output)
    if holds(storage, source) and holds(source, storage):
        raise BadRequest(f"input and output are the same folder, {source.uri}; choose another --output")
    both_local = source.local and storage.local
    return storage if both_local or holds(_folder(source), storage) else None


def _folder(storage: StoragePath) -> StoragePath:
    """Of a pattern, the folder that it is searched in."""
    return replace(storage, path=split_pattern(storage.path)[0]) if has_wildcard(storage.path) else storage


def _files(storage: StoragePath, prefer_parquet: bool, without: StoragePath | None) -> tuple[list[Entry], int]:
    """Files of one kind, and how many were ignored."""
    kind = _kind(storage)
    if kind == fs.FileType.Directory:
        return _of_one_kind(walk(storage, without=without), prefer_parquet)
    if kind == fs.FileType.File:
        return _single(storage)
    if kind == fs.FileType.Unknown:
        raise BadRequest(f"{storage.uri} is a pipe, a socket or a device; give a folder, a glob or a file")
    folder, pattern = _searched(storage)
    depth = None if "**" in pattern.split("/") else pattern.count("/") + 1
    matching = (entry for entry in walk(folder, depth, without) if matches(entry.source, pattern))
    return _of_one_kind(matching, prefer_parquet)


def _of_one_kind(entries: Iterable[Entry], prefer_parquet: bool) -> tuple[list[Entry], int]:
    kinds: list[tuple[frozenset[str], list[Entry]]] = [
        (each, []) for each in (IMAGE_ENDINGS, PARQUET_ENDINGS, ARCHIVE_ENDINGS)
    ]
    total = 0
    for entry in entries:
        total += 1
        ending = _ending(entry.source)
        for endings, found in kinds:
            if ending in endings:
                found.append(entry)
    images, parquet, archives = (found for _, found in kinds)
    chosen = parquet if prefer_parquet else images or parquet or archives
    return chosen, total - len(chosen)


def _single(storage: StoragePath) -> tuple[list[Entry], int]:
    name = posixpath.basename(storage.path)
    ending = _ending(name)
    if ending in LIST_ENDINGS:
        return read_list(storage), 0
    if ending not in IMAGE_ENDINGS | PARQUET_ENDINGS | ARCHIVE_ENDINGS:
        raise BadRequest(
            f"{storage.uri} is not a folder, list (.txt, .lst), Parquet file (.parquet, .pq), archive (.tar, .zip) or "
            f"image ({' '.join(sorted(IMAGE_ENDINGS))}) by its extension; {_UNKNOWN.get(ending, 'rename it')}"
        )
    return [Entry.of(name, stored(storage.path), storage.filesystem.get_file_info(storage.path))], 0


def _kind(storage: StoragePath) -> fs.FileType:
    try:
        return storage.filesystem.get_file_info(storage.path).type
    except Exception as error:  # file systems other than pyarrow's own raise their libraries' errors
        fix = "" if storage.local else "; check network and credentials, or download the data and name its folder"
        raise BadRequest(f"cannot access {storage.uri}: {redact_within(str(error))}{fix}") from None


def _lr_files(storage: StoragePath, without: StoragePath | None) -> list[Entry]:
    if _kind(storage) != fs.FileType.Directory:
        raise BadRequest(f"lr_input {storage.uri} is not a folder; give the folder of the low-resolution images")
    return [entry for entry in walk(storage, without=without) if _ending(entry.source) in IMAGE_ENDINGS]


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].removeprefix(".").lower()
