"""Which files lie below a folder, on a disk or in an object store, and which of them match a pattern."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pyarrow import fs

from idc_ray.errors import BadRequest
from idc_ray.images.manifest import Entry
from idc_ray.images.names import shown, stored
from idc_ray.locate import StoragePath, same_store


def walk(storage: StoragePath, depth: int | None = None, without: StoragePath | None = None) -> Iterator[Entry]:
    """Every file below the folder ``storage``, its ``source`` relative to it; no order is promised.

    Hidden files and folders (a name that begins with a dot) are skipped. On a disk, links are followed, and
    each real folder is entered once, so a loop of links ends; a link to nothing is listed with size -1
    (loading it will say so); pipes and devices are skipped, since reading one may never end.

    Args:
        storage: a folder.
        depth: how many levels of names to look at, 1 for the folder itself; None for all.
        without: a folder that is left out with all that is below it, under whatever name it is met.

    Raises:
        BadRequest: a folder cannot be listed.
    """
    try:
        yield from _walk_disk(storage.path, depth, without) if storage.local else _walk_store(storage, depth, without)
    except OSError as error:
        raise BadRequest(f"cannot list {storage.uri}: {error}") from error
    except Exception as error:
        if storage.local:
            raise
        raise BadRequest(f"cannot list {storage.uri}: {type(error).__name__}: {error}") from None  # its library's error


def _walk_store(storage: StoragePath, depth: int | None, without: StoragePath | None) -> Iterator[Entry]:
    base = storage.path
    left_out = f"{without.path}/" if without is not None and same_store(storage, without) else None
    for info in storage.filesystem.get_file_info(fs.FileSelector(base, recursive=depth != 1)):
        name = info.path[len(base) :].lstrip("/")
        parts = name.split("/")
        if info.type != fs.FileType.File or any(part.startswith(".") for part in parts):
            continue
        if left_out is not None and info.path.startswith(left_out):
            continue
        if depth is None or len(parts) <= depth:
            yield Entry.of(name, info.path, info)


def _walk_disk(base: str, depth: int | None, without: StoragePath | None) -> Iterator[Entry]:
    entered: set[tuple[int, int]] = set()
    kept_out = None
    if without is not None and without.local and os.path.exists(without.path):
        left_out = os.stat(without.path)
        entered.add((left_out.st_dev, left_out.st_ino))
        kept_out = without
    linked: list[tuple[str, str]] = []
    real = [(base, "")]  # real folders first: a link to one of them must not rename its files
    while real or linked:
        folder, prefix = real.pop() if real else linked.pop()
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in entered:
            continue
        entered.add((identity.st_dev, identity.st_ino))
        below: list[tuple[str, str]] = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name, reverse=True):
                if entry.name.startswith("."):
                    continue
                if kept_out is not None and entry.is_symlink() and _leads_into(kept_out, entry.path):
                    continue
                found = _status(entry)
                if found is None or not stat.S_ISDIR(found.st_mode):
                    yield from _file(entry, prefix, found)
                elif depth is None or prefix.count("/") + 1 < depth:
                    (linked if entry.is_symlink() else below).append((entry.path, f"{prefix}{entry.name}/"))
        real.extend(below)


def _leads_into(folder: StoragePath, link: str) -> bool:
    return os.path.realpath(link).startswith(f"{os.path.realpath(folder.path).rstrip('/')}/")


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:  # a link to nothing or to itself
        return None


def _file(entry: os.DirEntry[str], prefix: str, found: os.stat_result | None) -> Iterator[Entry]:
    source, path = shown(prefix + entry.name), stored(entry.path)
    if found is None:
        yield Entry(source, path)
    elif stat.S_ISREG(found.st_mode):
        yield Entry(source, path, found.st_size, found.st_mtime_ns)


def has_wildcard(text: str) -> bool:
    """Whether ``text`` has a ``*``, ``?`` or ``[``."""
    return any(mark in text for mark in "*?[")


def split_pattern(path: str) -> tuple[str, str]:
    """The longest leading folder without wildcards, and the pattern below it."""
    parts = PurePosixPath(path).parts
    first = next(i for i, part in enumerate(parts) if has_wildcard(part))
    return str(PurePosixPath(*parts[:first])), "/".join(parts[first:])


def matches(source: str, pattern: str) -> bool:
    """Whether a relative POSIX path matches a glob: ``*``, ``?`` and ``[ab]`` stay within a name, ``**`` spans folders
    or none.
    """
    return _match(source.split("/"), pattern.split("/"))


def _match(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    first, *rest = patterns
    if first == "**":
        least = 0 if rest else 1  # at the end of a pattern it matches files too
        return any(_match(names[skipped:], rest) for skipped in range(least, len(names) + 1))
    return bool(names) and fnmatchcase(names[0], first) and _match(names[1:], rest)
