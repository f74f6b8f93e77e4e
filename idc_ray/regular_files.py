"""Opens regular files only: to read a pipe, a socket or a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO


class NotRegularFile(OSError):
    """A folder, pipe, socket or device where a file was expected."""


def open_regular(path: str | bytes) -> BinaryIO:
    """Open a local file for reading. Never waits, not even for a pipe's writer.

    Raises:
        NotRegularFile: it is something else, or a link to something else.
        OSError: as :func:`open`; ``FileNotFoundError`` when there is nothing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _refusal("a socket", path) from None
        raise
    try:
        _check(os.fstat(descriptor).st_mode, path)  # of what was opened: a path may change between two looks
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str) -> None:
    """Raise :class:`NotRegularFile` unless a local path is that of a file or of nothing."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # opening the file gives a better error
        return
    _check(mode, path)


def _check(mode: int, path: str | bytes) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise _refusal(kinds.get(stat.S_IFMT(mode), "a device"), path)


def _refusal(kind: str, path: str | bytes) -> NotRegularFile:
    return NotRegularFile(f"{os.fsdecode(path)!r} is {kind}; expected a regular file")
