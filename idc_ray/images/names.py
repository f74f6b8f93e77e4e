"""File names that are not UTF-8: Linux allows any bytes, Arrow strings and Parquet do not.

Such a name is *shown* with backslash escapes (``caf\\xe9.png``) and *stored* as a NUL, which no real path can
contain, followed by the percent-encoded bytes. All other paths are stored as they are.
"""

from __future__ import annotations

import os
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa
from pyarrow import fs

__all__ = ["open_path", "shown", "stored"]

_MARK = "\0"


def shown(name: str) -> str:
    """A name from ``os`` as valid UTF-8 for people, with bytes that are no UTF-8 escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def stored(path: str) -> str:
    """A local path from ``os`` as valid UTF-8 from which :func:`open_path` finds the same file."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return _MARK + quote_from_bytes(os.fsencode(path))
    return path


def open_path(filesystem: fs.FileSystem, path: str) -> BinaryIO | pa.NativeFile:
    """Open a path as :func:`stored` wrote it, for random access.

    Raises:
        OSError: as the filesystem raises it; ``FileNotFoundError`` when there is no such file.
    """
    if path.startswith(_MARK):
        return open(unquote_to_bytes(path[1:]), "rb")
    return filesystem.open_input_file(path)
