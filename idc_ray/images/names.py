"""Opens files, also those whose names are not UTF-8: Linux allows any bytes, Arrow strings and Parquet do not.

Such a name is *shown* with backslash escapes (``caf\\xe9.png``) and *stored* as a NUL, which no real path can
contain, followed by the percent-encoded bytes. All other paths are stored as they are.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa
from pyarrow import fs

from idc_ray.errors import BadRequest
from idc_ray.locate import locate
from idc_ray.regular_files import open_regular

#: Most bytes of a file that is read whole; the largest networks for super-resolution in use have 2 GB.
MAX_FILE_BYTES = 4 * 2**30
_MARK = "\0"
_RESERVED = re.compile("@+(up|root)")  # parts of sources that stand for others


def shown(name: str) -> str:
    """A name from ``os`` as valid UTF-8 for display; other bytes are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def inside(path: str) -> str:
    """A path that leaves no folder: ``..`` is ``@up``, a leading ``/`` is ``@root/``, and ``@up`` itself ``@@up``."""
    clean = posixpath.normpath(path)
    root, clean = ("@root/", clean.lstrip("/")) if clean.startswith("/") else ("", clean)
    parts = ["@up" if part == ".." else f"@{part}" if _RESERVED.fullmatch(part) else part for part in clean.split("/")]
    return root + "/".join(parts)


def stored(path: str) -> str:
    """A local path from ``os`` as valid UTF-8 from which :func:`open_path` finds the same file."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return _MARK + quote_from_bytes(os.fsencode(path))
    return path


def open_path(filesystem: fs.FileSystem, path: str) -> BinaryIO | pa.NativeFile:
    """Open a path as :func:`stored` wrote it, for random access. On a disk only regular files are opened.

    Raises:
        NotRegularFile: a pipe, a socket, a device or a folder, or a link to one.
        OSError: as the filesystem raises it; ``FileNotFoundError`` when there is no such file.
    """
    if path.startswith(_MARK):
        return open_regular(unquote_to_bytes(path[1:]))
    if isinstance(filesystem, fs.LocalFileSystem):
        return open_regular(path)
    return filesystem.open_input_file(path)


def folder_of(path: str) -> str:
    """The folder of a path as :func:`stored` wrote it, in the same form."""
    folder = path.rpartition("/")[0]
    return folder if folder not in ("", _MARK) else "/"


def is_there(filesystem: fs.FileSystem, path: str) -> bool:
    """Whether there is a file or folder at a path as :func:`stored` wrote it.

    Raises:
        OSError: the path cannot be accessed.
    """
    if path.startswith(_MARK):
        return os.path.exists(unquote_to_bytes(path[1:]))
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def read_bytes(text: str, setting: str) -> bytes:
    """The content of one file, such as a checkpoint, wherever it is.

    Args:
        text: as for :func:`idc_ray.locate.locate`.
        setting: the option that named it, for messages.

    Raises:
        BadRequest: it cannot be read, or is far larger than any checkpoint.
    """
    storage = locate(text)
    try:
        with open_path(storage.filesystem, storage.path) as file:
            size = file.seek(0, 2)
            if size > MAX_FILE_BYTES:
                raise BadRequest(
                    f"{storage.uri} has {size:,} bytes; expected at most {MAX_FILE_BYTES:,}: check {setting}"
                )
            file.seek(0)
            return bytes(file.read())
    except OSError as error:
        raise BadRequest(f"the checkpoint {storage.uri} cannot be read ({error}); check {setting}") from None
