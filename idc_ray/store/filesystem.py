"""The folder of an output: local, or a prefix in an object store, through pyarrow.fs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from idc_ray.errors import BadRequest, IdcError
from idc_ray.locate import locate
from idc_ray.object_stores import StoreUnavailable, explain, waits
from idc_ray.redact import is_hidden, redact, redact_within
from idc_ray.regular_files import NotRegularFile, check_regular
from idc_ray.store import atomic

_UNUSUAL = re.compile(r"[^\x20-\x7e\n]")
_PYARROW_BUFFER_BUG = "Failed to flush response stream"


@dataclass(frozen=True)
class StorageFolder:
    """Files below one root. Names are relative to the root, with '/'. Can be pickled.

    Args:
        fs: the file system.
        root: the root's path in it; absolute if local.
        uri: the root without credentials, for messages and files.
    """

    fs: FileSystem
    root: str
    uri: str

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine (or mounted on it)."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of ``name`` in the file system; of the root if empty."""
        return "/".join(segment for segment in (self.root, name) if segment)

    def shown(self, name: str) -> str:
        """``name`` as messages show it."""
        folder, mark, query = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return f"{folder.rstrip('/')}/{name}{mark}{query}"

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a whole file, atomically and durably (see `atomic.write_bytes`)."""
        with self._translated("write", name):
            atomic.write_bytes(self.fs, self.path(name), data)

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is fine."""
        with self._translated("delete", name):
            atomic.delete(self.fs, self.path(name))

    def sync(self, folder: str) -> None:
        """Make deletions right in a local folder survive a power cut; those in an object store do."""
        if self.is_local and os.path.isdir(self.path(folder)):
            atomic.sync_folder(self.path(folder))

    def open(self, name: str) -> pa.NativeFile:
        """Open a file for random access; FileNotFoundError if it is not there."""
        with self._translated("read", name):
            file = self._opened(name)
        return file if self.is_local else pa.PythonFile(_Reads(file, lambda: self._translated("read", name)), mode="r")

    def read(self, name: str) -> bytes | None:
        """A whole file, None if it is not there."""
        # pyarrow reads a failed request's text into the file's buffer; if it does not fit, there is no retry.
        for wait in (*waits(), None):
            try:
                with self._translated("read", name), self._opened(name) as file:
                    return bytes(file.read())
            except (FileNotFoundError, NotADirectoryError):  # or the root is a file
                return None
            except StoreUnavailable as error:
                if wait is None or _PYARROW_BUFFER_BUG not in str(error):
                    raise
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _opened(self, name: str) -> pa.NativeFile:
        if self.is_local:
            try:
                check_regular(self.path(name))
            except NotRegularFile as error:
                raise IdcError(f"{error}; remove it, or choose another output") from None
        return self.fs.open_input_file(self.path(name))

    def size(self, name: str) -> int | None:
        """A file's size in bytes, None if it is not there."""
        with self._translated("read the size of", name):
            info = self.fs.get_file_info(self.path(name))
        return int(info.size) if info.type == FileType.File else None

    def files(self, folder: str) -> list[str]:
        """Names of the files right in a folder, sorted; none if it is not there."""
        return self._list(folder, FileType.File)

    def folders(self, folder: str) -> list[str]:
        """Names of the folders right in a folder, sorted; none if it is not there."""
        return self._list(folder, FileType.Directory)

    def all_files(self) -> dict[str, int]:
        """Every file below the root: its name, and when it was last changed, in ns since 1970 (-1: unknown)."""
        if self.is_local:  # pyarrow's listing fails at a name that is not UTF-8
            paths = [os.path.join(folder, name) for folder, _, names in os.walk(self.root) for name in names]
            return {os.path.relpath(path, self.root): os.lstat(path).st_mtime_ns for path in paths}
        with self._translated("list", ""):
            infos = self.fs.get_file_info(FileSelector(self.path(""), allow_not_found=True, recursive=True))
        start = len(self.root.rstrip("/")) + 1
        files = (info for info in infos if info.type == FileType.File)
        return {info.path[start:]: -1 if info.mtime_ns is None else info.mtime_ns for info in files}

    def remove_if_empty(self, folder: str) -> None:
        """Remove a local folder that has nothing in it; an object store has no folders."""
        if self.is_local:
            with contextlib.suppress(OSError):
                os.rmdir(self.path(folder))

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON object; NaN is refused, since JSON has none."""
        self.write(name, json_bytes(value))

    def read_json(self, name: str, fix: str) -> dict[str, Any] | None:
        """Read a JSON object, None if it is not there.

        Raises:
            IdcError: it is no JSON object; the message ends with ``fix``.
        """
        data = self.read(name)
        if data is None:
            return None
        try:
            value = json.loads(data)
        except ValueError as error:
            raise IdcError(f"{self.shown(name)} is not valid JSON ({error}); {fix}") from error
        if not isinstance(value, dict):
            raise IdcError(f"{self.shown(name)} contains a JSON {type(value).__name__}; expected an object; {fix}")
        return value

    @contextlib.contextmanager
    def parsing(self, name: str, fault: str, fix: str) -> Iterator[None]:
        """Name the file in errors about its content: ``OUT/name FAULT (REASON); FIX``.

        Raises:
            IdcError: the block failed to read the file, or found another value than expected. A missing file and an
                object store that does not answer are other errors, which pass.
        """
        try:
            yield
        except (IdcError, FileNotFoundError):
            raise
        except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
            raise IdcError(f"{self.shown(name)} {fault} ({error}); {fix}") from error

    def check_writable(self) -> None:
        """Write and deletes a small file.

        Raises:
            BadRequest: it cannot be written; the message names the fix.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            if self.is_local:
                atomic.make_folder(self.root)
            self.write(probe, b"")
            self.delete(probe)
        except (IdcError, OSError, pa.ArrowException) as error:
            fix = (
                "choose another --output, or make this one a writable folder"
                if self.is_local
                else "check that the bucket exists, that the credentials may write and delete in it, and its region"
            )
            raise BadRequest(f"cannot write to output {self.uri} ({redact_within(str(error))}); {fix}") from error

    def infos(self, folder: str) -> list[FileInfo]:
        """Files and folders right in a folder, with their sizes and times; none if it is not there."""
        with self._translated("list", folder):
            return list(self.fs.get_file_info(FileSelector(self.path(folder), allow_not_found=True)))

    def _list(self, folder: str, kind: FileType) -> list[str]:
        path = self.path(folder)
        if self.is_local:  # scandir needs no stat per file
            if not os.path.isdir(path):
                return []
            with os.scandir(path) as entries:
                return sorted(e.name for e in entries if (e.is_dir() if kind == FileType.Directory else e.is_file()))
        return sorted(info.base_name for info in self.infos(folder) if info.type == kind)

    @contextlib.contextmanager
    def _translated(self, what: str, name: str) -> Iterator[None]:
        """Add the name and the fix to an object store's error; a disk's error has both."""
        try:
            yield
        except (IdcError, FileNotFoundError):
            raise
        except (OSError, pa.ArrowException) as error:
            if self.is_local:
                raise
            text = redact_within(str(error).partition("\n")[0])
            raise StoreUnavailable(f"cannot {what} {self.shown(name)} ({text}); {explain(error)}") from error


class _Reads:
    """A file whose failing reads are a `StoreUnavailable`, which readers of Parquet would take for damage."""

    def __init__(self, file: pa.NativeFile, naming: Callable[[], AbstractContextManager[None]]) -> None:
        self.file, self.naming = file, naming

    def read(self, size: int) -> bytes:
        with self.naming():
            return bytes(self.file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def json_bytes(value: Any, escaped: bool = True) -> bytes:
    """The text of a JSON value as files hold it; ValueError for NaN, which JSON has not.

    Args:
        value: the value.
        escaped: write characters that reorder text or cannot be seen as ``\\uXXXX``; files of early versions did not.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    if escaped:
        text = _UNUSUAL.sub(lambda match: json.dumps(match[0])[1:-1] if is_hidden(match[0]) else match[0], text)
    # A file name that is no UTF-8 holds lone surrogates; a backslash escape of those is what JSON reads.
    return (text + "\n").encode("utf-8", "backslashreplace")


def resolve(uri: str) -> StorageFolder:
    """The folder that a path or a URI names; touches nothing. Errors as :func:`idc_ray.locate.locate`."""
    place = locate(uri)
    return StorageFolder(place.filesystem, place.path, place.path if place.local else redact(uri))
