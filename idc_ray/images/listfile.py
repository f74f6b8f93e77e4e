"""List files: a text file that names one image per line."""

from __future__ import annotations

import logging
import posixpath

from pyarrow import fs

from idc_ray.errors import BadRequest
from idc_ray.images.manifest import Entry
from idc_ray.images.names import inside, open_path, stored
from idc_ray.locate import StoragePath

log = logging.getLogger(__name__)

_CHUNK = 4096  # paths per status call


def read_list(storage: StoragePath) -> list[Entry]:
    """The images that a list file names.

    One path per line, UTF-8, relative to the list's folder, or absolute on a disk. Blank lines and lines that begin
    with ``#`` are skipped (write ``./#1.png`` for such a name). Lines may leave the list's folder, by an absolute path
    or ``..``: the user wrote them. Sources never do, so that nothing derived from one can be written outside an output:
    ``..`` becomes ``@up`` and a leading ``/`` becomes ``@root/``; folders of these very names become ``@@up`` and
    ``@@root``. A relative line keeps its id when list and images move together, an absolute one when only the list
    moves.

    A path named twice counts once, under its first spelling, and is logged.

    A single path that does not exist is kept, and loading it says so; its extension does not matter, its content does.

    Raises:
        BadRequest: not UTF-8, a URI or a folder as a line, an absolute line in an object store, or none exists.
    """
    found: dict[str, Entry] = {}
    lines = _lines(storage)
    for line in lines:
        entry = _entry(line, storage)
        found.setdefault(entry.path, entry)
    if len(found) < len(lines):
        log.info("ignored %d lines of the list that name an image again", len(lines) - len(found))
    entries = list(found.values())
    return _with_status(entries, storage) if storage.local else entries


def _lines(storage: StoragePath) -> list[str]:
    try:
        with open_path(storage.filesystem, stored(storage.path)) as file:
            text = file.read().decode("utf-8-sig")
        if "\0" in text:
            raise BadRequest(f"the list {storage.uri} is not text (it has NUL bytes); save it as UTF-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the list {storage.uri} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise BadRequest(f"cannot read the list {storage.uri}: {error}") from error
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _entry(line: str, storage: StoragePath) -> Entry:
    if "://" in line:
        raise BadRequest(
            f"the list {storage.uri} names the URI {line!r}; put the list next to the images, with relative paths"
        )
    absolute = line.startswith("/")
    if absolute and not storage.local:
        raise BadRequest(
            f"the list {storage.uri} names {line!r}; in an object store, paths are relative to the list's folder"
        )
    clean = posixpath.normpath(line)
    if absolute:
        clean = "/" + clean.lstrip("/")  # POSIX keeps two leading slashes apart from one; Linux does not
    path = posixpath.normpath(posixpath.join(posixpath.dirname(storage.path), clean))
    return Entry(inside(clean), path)


def _infos(filesystem: fs.FileSystem, paths: list[str]) -> list[fs.FileInfo]:
    try:
        return list(filesystem.get_file_info(paths))
    except OSError:  # of one of them, such as a name that is too long; reading that one will say so
        if len(paths) == 1:
            return [fs.FileInfo(paths[0], fs.FileType.NotFound)]
        middle = len(paths) // 2
        return _infos(filesystem, paths[:middle]) + _infos(filesystem, paths[middle:])


def _with_status(entries: list[Entry], storage: StoragePath) -> list[Entry]:
    checked: list[Entry] = []
    for start in range(0, len(entries), _CHUNK):
        chunk = entries[start : start + _CHUNK]
        for entry, info in zip(chunk, _infos(storage.filesystem, [e.path for e in chunk]), strict=True):
            if info.type == fs.FileType.Directory:
                raise BadRequest(f"the list {storage.uri} names the folder {entry.path!r}; list its images")
            known = info.type == fs.FileType.File
            checked.append(entry._replace(size=info.size, mtime_ns=info.mtime_ns) if known else entry)
    if checked and all(entry.size < 0 for entry in checked):
        raise BadRequest(
            f"none of the {len(checked)} paths in {storage.uri} exists (first: {checked[0].path!r}); "
            "paths are relative to the list's folder"
        )
    return checked
